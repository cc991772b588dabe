"""vLLM's own sampling parameters, the same for all rows of a run."""

from __future__ import annotations

from typing import Any

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.settings import NOT_FOR_SAMPLING, Settings
from vllm_optimal_sampling.params import closest


def sampling_params(settings: Settings) -> Any:
    """vLLM's `SamplingParams` of all samples. A server is asked for the same ones as an engine.

    Raises:
        SettingsError: `sampling` has a name that vLLM does not know (for a server: not as a field of a request), or vLLM
            refuses a value.

    """
    import msgspec
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind

    known = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    if settings.endpoint is not None:
        known &= _fields_of_a_request(settings.chat)
    known -= NOT_FOR_SAMPLING.keys()
    for name in settings.sampling:
        if name not in known:
            raise SettingsError(f"sampling has {name!r}, which vLLM does not know{closest(name, known)}")
    values = {
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
        "stop": list(settings.stop),
        "n": settings.best_of or 1,
        **settings.sampling,
    }
    try:
        # Unlike the constructor it checks types, makes objects of objects, and has JSON's names for token ids.
        params = msgspec.convert(values, SamplingParams, str_keys=True)
    except (msgspec.ValidationError, VLLMClientError, TypeError, ValueError) as error:
        raise SettingsError(f"vLLM refuses the sampling options: {error}") from None
    params.output_kind = RequestOutputKind.FINAL_ONLY
    return params


def _fields_of_a_request(chat: bool) -> set[str]:
    if chat:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest as Request
    else:
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest as Request
    return set(Request.model_fields)
