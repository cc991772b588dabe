"""The chat template of a multimodal theta, which may lie with its processor and may want a message as a list of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.tokenizers import TokenizerLike


def template_and_messages(
    tokenizer: TokenizerLike, template: str | None, messages: list[dict[str, Any]], theta: ModelConfig
) -> tuple[str | None, list[dict[str, Any]]]:
    """What vLLM's server would render for these messages of text.

    A template that goes through the parts of a message goes through the characters of a text that is none, and writes
    nothing of it.

    Args:
        tokenizer: theta's.
        template: the one that the engine was given, if any.
        messages: with texts as content.
        theta: its configuration.
    """
    from transformers import PreTrainedTokenizerBase

    if not theta.is_multimodal_model or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return template, messages
    from vllm.renderers.hf import resolve_chat_template, resolve_chat_template_content_format

    hf_tokenizer: Any = tokenizer
    template = resolve_chat_template(hf_tokenizer, template, None, model_config=theta)
    if resolve_chat_template_content_format(template, None, "auto", hf_tokenizer, model_config=theta) == "openai":
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    return template, messages
