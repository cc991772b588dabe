"""Patches in the HTTP server: the per-token record in its responses, and arguments that came in the wrong place."""

from __future__ import annotations

from typing import Any

from vllm_optimal_sampling.config.settings import is_enabled
from vllm_optimal_sampling.hooks.registry import patch

COMPLETION = "vllm.entrypoints.openai.completion.serving"
CHAT = "vllm.entrypoints.openai.chat_completion.serving"
TOKENS = "vllm.entrypoints.scale_out.token_in_token_out.serving"


def _serves_theta(serving: Any) -> bool:
    return is_enabled(serving.engine_client.vllm_config)


@patch(
    COMPLETION,
    "OpenAIServingCompletion.request_output_to_completion_response",
    "self final_res_batch request request_id created_time model_name tokenizer request_metadata",
    "a choice is made of a completion field by field, and has none of ours",
)
def completion_response(original: Any, self: Any, final_res_batch: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    response = original(self, final_res_batch, request, *args, **kwargs)
    if request.max_tokens != 0 and _serves_theta(self):  # without tokens vLLM draws one that it does not show
        from vllm_optimal_sampling.front_end.responses import recorded

        return recorded(response, [made_of for output in final_res_batch for made_of in output.outputs])
    return response


@patch(
    COMPLETION,
    "OpenAIServingCompletion.completion_stream_generator",
    "self request engine_inputs result_generator request_id created_time model_name num_prompts tokenizer "
    "request_metadata",
    "the same for the chunks of a stream, which leave as text",
)
def completion_stream(
    original: Any, self: Any, request: Any, engine_inputs: Any, result_generator: Any, *args: Any, **kwargs: Any
) -> Any:
    if request.max_tokens == 0 or not _serves_theta(self):
        return original(self, request, engine_inputs, result_generator, *args, **kwargs)
    from vllm_optimal_sampling.front_end.responses import StreamRecordBuffer

    buffer = StreamRecordBuffer(result_generator, request.n or 1)
    return buffer.add_to(original(self, request, engine_inputs, aiter(buffer), *args, **kwargs))


@patch(
    CHAT,
    "OpenAIServingChat.chat_completion_full_generator",
    "self request result_generator request_id model_name conversation tokenizer request_metadata parser mm_token_counts",
    "the same for a chat",
)
@patch(
    TOKENS,
    "ServingTokens.serve_tokens_full_generator",
    "self request result_generator request_id model_name request_metadata ...",
    "the same for tokens in, tokens out",
)
async def response_to_one_prompt(
    original: Any, self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any
) -> Any:
    if not _serves_theta(self):
        return await original(self, request, result_generator, *args, **kwargs)
    from vllm_optimal_sampling.front_end.responses import LastOutput, recorded

    outputs = LastOutput(result_generator)
    response = await original(self, request, aiter(outputs), *args, **kwargs)
    if not hasattr(response, "choices"):  # an error
        return response
    return recorded(response, outputs.output.outputs)


@patch(
    CHAT,
    "OpenAIServingChat.chat_completion_stream_generator",
    "self request result_generator request_id model_name conversation tokenizer request_metadata chat_template_kwargs "
    "mm_token_counts",
    "the same for the chunks of a chat's stream",
)
@patch(
    TOKENS,
    "ServingTokens.serve_tokens_stream_generator",
    "self request result_generator request_id model_name request_metadata",
    "the same for those of tokens",
)
def stream_of_one_prompt(
    original: Any, self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any
) -> Any:
    if not _serves_theta(self):
        return original(self, request, result_generator, *args, **kwargs)
    from vllm_optimal_sampling.front_end.responses import StreamRecordBuffer

    buffer = StreamRecordBuffer(result_generator, 1)
    return buffer.add_to(original(self, request, aiter(buffer), *args, **kwargs))


@patch(
    "vllm.entrypoints.openai.chat_completion.batch_serving",
    "OpenAIServingChatBatch.chat_completion_full_generator_batch",
    "self request generators request_id model_name all_conversations tokenizer request_metadata parser_cls",
    "the same for a batch of chats, which has a choice for each",
)
async def chat_batch_response(
    original: Any, self: Any, request: Any, generators: Any, *args: Any, **kwargs: Any
) -> Any:
    if not _serves_theta(self):
        return await original(self, request, generators, *args, **kwargs)
    from vllm_optimal_sampling.front_end.responses import LastOutput, recorded

    chats = [LastOutput(generator) for generator in generators]
    response = await original(self, request, [aiter(outputs) for outputs in chats], *args, **kwargs)
    if not hasattr(response, "choices"):  # an error
        return response
    return recorded(response, [made_of for outputs in chats for made_of in outputs.output.outputs])


@patch(
    "vllm.entrypoints.serve.utils.api_utils",
    "validate_json_request",
    "raw_request",
    "unknown fields of a request are dropped, and what a client puts there by mistake is theta's prompt",
)
async def validate_json_request(original: Any, raw_request: Any) -> None:
    from vllm_optimal_sampling.front_end.misplaced import refuse_misplaced_in

    await original(raw_request)
    await refuse_misplaced_in(raw_request)


@patch(
    "vllm.entrypoints.serve.engine.serving",
    "BaseServing._check_model",
    "self request",
    "the same for requests that come from a file (`vllm run-batch`)",
)
async def check_model(original: Any, self: Any, request: Any) -> Any:
    engine = getattr(self, "engine_client", None)
    if engine is not None and is_enabled(engine.vllm_config):
        from vllm_optimal_sampling.front_end.misplaced import refuse_misplaced

        refuse_misplaced(getattr(request, "model_extra", None))
    return await original(self, request)
