"""Configurations of real engines, as vLLM builds them, without starting one: no weights, two models in a folder."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.refusals import check_supported

VOCAB_SIZE = 300
MAX_MODEL_LEN = 128
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] == 'refuse' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def save_model(
    path: Path,
    *,
    special: str = "<|endoftext|>",
    chat_template: str | None = CHAT_TEMPLATE,
    words: str = "the quick brown fox jumps over the lazy dog",
    **overrides: Any,
) -> str:
    """The configuration and the tokenizer of a small model; `special` is the token of id 0, `words` make the merges."""
    options = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
        **overrides,
    }
    architecture = options.pop("architecture", "qwen2")
    config = AutoConfig.for_model(architecture, **options)
    config.architectures = [{"qwen2": "Qwen2ForCausalLM", "mistral": "MistralForCausalLM"}[architecture]]
    config.save_pretrained(path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([words], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special)
    if chat_template is not None:
        fast.chat_template = chat_template
    fast.save_pretrained(path)
    return str(path)


def build(engine_args: Any) -> Any:
    """vLLM's configuration of the engine, as the patch of `create_engine_config` builds it."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_optimal_sampling.config.engine_config import create_engine_config

    create = inspect.unwrap(EngineArgs.create_engine_config)  # vLLM's own, where the plugin is installed
    return create_engine_config(engine_args, lambda: create(engine_args))


def refusal_of(config: Any, monkeypatch: pytest.MonkeyPatch, path: str, value: Any) -> str:
    """Why a configuration that may start may not once the value at `path` (names with dots between) is another."""
    check_supported(config)
    owner = config
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    monkeypatch.setattr(owner, name, value)
    with pytest.raises(UnsupportedEngineError) as caught:
        check_supported(config)
    return str(caught.value)


def refusal(build_config: Callable[..., Any], **arguments: Any) -> str:
    """Why an engine with these arguments may not start."""
    with pytest.raises(UnsupportedEngineError) as caught:
        build_config(**arguments)
    return str(caught.value)
