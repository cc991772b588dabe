"""Tokenizers that agree but for special tokens, made on the spot: one byte-level BPE, each with special tokens of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

TRAINED_ON = "the quick brown fox jumps over the lazy dog and two more numbers add up to the answer"


@dataclass(frozen=True)
class Specials:
    """The special tokens of one tokenizer.

    Attributes:
        tokens: in the order of their ids.
        eos: the tokenizer's end of text.
        chat_template: with the tokens of this tokenizer.
        first: before the ordinary tokens, whose ids are then larger by so many.
        generation_eos: strings of the tokens at which the generation configuration ends a text.
    """

    tokens: tuple[str, ...]
    eos: str
    chat_template: str | None = None
    first: bool = False
    generation_eos: tuple[str, ...] = ()
    bos: str | None = None


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% else %}<bot>{{ message['content'] }}<end of answer>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)

CHATTY = Specials(
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", "<user>"),
    eos="<|im_end|>",
    chat_template=CHATML,
    generation_eos=("<|im_end|>", "<|endoftext|>"),
)
"""Two ends, and one that its chats never have."""

OTHER = Specials(
    ("<begin>", "<end of answer>", "<user>", "<bot>"), eos="<end of answer>", chat_template=PLAIN, bos="<begin>"
)
"""`<user>` in another place, one end, and tokens that `CHATTY` lacks."""


def save_tokenizer(path: Path, specials: Specials, words: str = TRAINED_ON) -> PreTrainedTokenizerFast:
    """A byte-level BPE with these special tokens; `words` decide the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(specials.tokens) if specials.first else [],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    split = words.split()
    tokenizer.train_from_iterator([" ".join(split[i:] + split[:i]) for i in range(len(split))], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials.tokens])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials.eos, bos_token=specials.bos)
    fast.chat_template = specials.chat_template
    fast.save_pretrained(path)
    if specials.generation_eos:
        GenerationConfig(eos_token_id=fast.convert_tokens_to_ids(list(specials.generation_eos))).save_pretrained(path)
    return fast


def save_model(path: Path, specials: Specials, *, padding: int, hidden_size: int = 64, seed: int = 0) -> str:
    """A random Llama with such a tokenizer, and so many ids without a token behind them."""
    import torch

    tokenizer = save_tokenizer(path, specials)
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer) + padding,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": hidden_size // 32,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **options))
    model.config.save_pretrained(path)
    generation = path / "generation_config.json"
    kept = generation.read_text() if generation.exists() else None
    model.save_pretrained(path)
    if kept is not None:
        generation.write_text(kept)
    return str(path)
