"""Which tokens end a text or a turn, and begin a text: as a model's generation configuration and chat template say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.tokenizers import TokenizerLike

ASKED, ANSWERED = "forty-two?", "forty-two."
"""A chat with these shows what a template puts behind an answer."""


@dataclass(frozen=True)
class TokenRoles:
    """Ids of one model, None where it has no such token.

    Attributes:
        turn: ends an answer. Of a model without a chat template it is what ends its texts.
        text: ends a text where that is another token.
        begin: begins a text.
    """

    turn: int | None
    text: int | None
    begin: int | None


def token_roles(model: ModelConfig, tokenizer: TokenizerLike, chat_template: str | None = None) -> TokenRoles:
    """The roles of a model's tokens.

    Args:
        model: vLLM's configuration of it.
        tokenizer: the model's.
        chat_template: in place of the tokenizer's own.
    """
    ends = _ends_of_text(model, tokenizer)
    turn = _end_of_turn(tokenizer, chat_template)
    if turn is None:
        turn = ends[0] if ends else None
    return TokenRoles(
        turn=turn,
        text=next((token_id for token_id in ends if token_id != turn), None),
        begin=getattr(tokenizer, "bos_token_id", None),
    )


def _ends_of_text(model: ModelConfig, tokenizer: TokenizerLike) -> list[int]:
    """What vLLM would end a text of this model at, the tokenizer's own first."""
    generation = model.try_get_generation_config().get("eos_token_id")
    given = generation if isinstance(generation, (list, tuple)) else [generation]
    ends = [getattr(tokenizer, "eos_token_id", None), *given]
    return [int(token_id) for token_id in dict.fromkeys(ends) if token_id is not None]


def _end_of_turn(tokenizer: TokenizerLike, chat_template: str | None) -> int | None:
    """The first special or added token behind an answer in the chat template; None without one."""
    messages: Any = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
    try:
        chat = tokenizer.apply_chat_template(messages, chat_template=chat_template, tokenize=False)
        assert isinstance(chat, str)
        behind = chat.rpartition(ANSWERED)[2]
        ids = tokenizer.encode(behind, add_special_tokens=False) if ANSWERED in chat else []
    except Exception:  # no template, or one that refuses such a chat, in whatever words
        return None
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
    return next((int(token_id) for token_id in ids if token_id in special), None)
