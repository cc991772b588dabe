"""The shipped folders: small, with one tokenizer that takes any text, a chat template and an end of turn."""

import json
import unicodedata
from pathlib import Path

import jinja2
import pytest
import task
import train
from transformers import AutoTokenizer

MODELS = ("teacher", "theta")
SIZE_LIMIT = 12_000_000  # bytes, both models together


@pytest.fixture(scope="module")
def tokenizer(pair: Path):
    return AutoTokenizer.from_pretrained(pair / "theta")


def test_together_they_are_small(pair: Path) -> None:
    assert sum(path.stat().st_size for model in MODELS for path in (pair / model).iterdir()) <= SIZE_LIMIT


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_both_have_the_same_tokenizer_and_chat_template(pair: Path, name: str) -> None:
    assert (pair / "teacher" / name).read_bytes() == (pair / "theta" / name).read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_architecture_and_end_of_turn(pair: Path, model: str) -> None:
    config = json.loads((pair / model / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(pair / model)
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["hidden_size"] // config["num_attention_heads"] in (32, 64)  # vLLM's attention on a CPU
    assert config["max_position_embeddings"] == 1024
    assert config["vocab_size"] == len(tokenizer)
    generation = json.loads((pair / model / "generation_config.json").read_text())
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id
    assert config["pad_token_id"] == generation["pad_token_id"] == tokenizer.pad_token_id
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert config["bos_token_id"] is None


def test_the_tokenizer_is_the_one_the_script_makes(tokenizer) -> None:
    assert tokenizer.get_vocab() == train.make_tokenizer().get_vocab()


@pytest.mark.parametrize(
    "text",
    [
        "Mia has 47 apples.",
        "a  b\tc\n\n  d\r\n",
        "Größe, naïve, smörgåsbord",
        "日本語 العربية עברית हिन्दी",
        "🎉👩‍👩‍👧‍👦 x²+y²=z²; def f(x): return x**2",
        "\x00\x01\x7f\u200b\ufeff",
        "".join(chr(code) for code in range(32, 0x250)),
    ],
)
def test_any_text_comes_back(tokenizer, text: str) -> None:
    """Up to the Unicode normal form NFC, which tokenizers of Qwen2's kind apply."""
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("kind", ["story", "longer", "sorting"])
def test_words_and_digits_of_the_task_are_one_token_each(tokenizer, kind: task.Kind) -> None:
    for problem in task.distinct(kind, "heldout", seed=5, count=200):
        for token in tokenizer.tokenize(f"{problem.problem} {problem.solution}"):
            assert token in ("Ġ", "?\n") or token.removeprefix("Ġ").isalpha() or len(token) == 1, token
        longest = len(tokenizer(problem.solution)["input_ids"])
        words = len(problem.solution.split())
        numbers = sum(letter.isdigit() for letter in problem.solution)
        marks = sum(letter in ".," for letter in problem.solution)
        assert longest <= words + numbers + marks


def test_the_chat_template_renders_turns(tokenizer) -> None:
    chat = [
        {"role": "system", "content": "You are a teacher."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "The answer is 3."},
        {"role": "user", "content": "And now?"},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|system|>You are a teacher.<|end|><|user|>How many?<|end|><|assistant|>The answer is 3.<|end|>"
        "<|user|>And now?<|end|><|assistant|>"
    )
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer(rendered)["input_ids"]
    assert [tokenizer.decode([ids[0]]), tokenizer.decode([ids[-1]])] == ["<|system|>", "<|assistant|>"]
    assert not tokenizer.apply_chat_template(chat[:2], tokenize=False).endswith("<|assistant|>")


def test_the_chat_template_refuses_other_roles(tokenizer) -> None:
    with pytest.raises(jinja2.TemplateError, match="system, user and assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "3"}], tokenize=False)
