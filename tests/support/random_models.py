"""Small random models, made on the spot: any architecture, one tokenizer, distributions far from uniform."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 512
EOS = 0
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_tokenizer(path: Path) -> None:
    """A byte-level tokenizer of 512 ids: every text has tokens and every id has text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "the quick brown fox jumps over the lazy dog and two more numbers add up to the answer"
    words = text.split()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words[i:] + words[:i]) for i in range(len(words))], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)


def save_model(
    path: Path,
    *,
    architecture: str = "qwen2",
    hidden_size: int = 64,
    num_layers: int = 2,
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
    max_position_embeddings: int = 1024,
    **overrides: object,
) -> str:
    """Save a random model and its tokenizer; weights large enough that the models disagree and are sure of it."""
    options: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 32,
        "num_key_value_heads": max(1, hidden_size // 64),
        "head_dim": 32,
        "max_position_embeddings": max_position_embeddings,
        "tie_word_embeddings": True,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": None,
        **overrides,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **options))
    model.save_pretrained(path)
    save_tokenizer(path)
    return str(path)


def save_eagle_head(path: Path, model: str, *, seed: int) -> str:
    """Save a random EAGLE head for a Llama by `save_model`, whose embedding and output layer it shares."""
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers = 1
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    shapes = {
        "fc": (hidden, 2 * hidden),
        "layers.0.self_attn.q_proj": (heads, hidden),
        "layers.0.self_attn.k_proj": (kv, hidden),
        "layers.0.self_attn.v_proj": (kv, hidden),
        "layers.0.self_attn.o_proj": (hidden, heads),
        "layers.0.mlp.gate_proj": (config.intermediate_size, hidden),
        "layers.0.mlp.up_proj": (config.intermediate_size, hidden),
        "layers.0.mlp.down_proj": (hidden, config.intermediate_size),
    }
    torch.manual_seed(seed)
    weights = {f"{name}.weight": torch.randn(shape) * 0.15 for name, shape in shapes.items()}
    weights["layers.0.post_attention_layernorm.weight"] = torch.ones(hidden)
    save_file(weights, path / "model.safetensors")
    return str(path)
