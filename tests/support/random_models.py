"""Small random models, made on the spot: any architecture, one tokenizer, distributions far from uniform."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 512
EOS = 0
CHAT_TEMPLATE = (
    "{% if hint is defined %}hint: {{ hint }}\n{% endif %}"
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
    hidden = config.hidden_size
    layer = {f"layers.0.{name}": shape for name, shape in _decoder_layer(config).items()}
    del layer["layers.0.input_layernorm"]
    save_file(_random_weights({"fc": (hidden, 2 * hidden), **layer}, seed), path / "model.safetensors")
    return str(path)


def save_eagle3_head(path: Path, model: str, *, seed: int, draft_vocab_size: int = VOCAB_SIZE // 2) -> str:
    """Save a random EAGLE-3 head for a Llama of four layers by `save_model`.

    It reads what goes into three of the layers, and drafts every second token of the vocabulary only.
    """
    config = AutoConfig.from_pretrained(model)
    config.num_hidden_layers = 1
    config.architectures = ["LlamaForCausalLMEagle3"]
    config.draft_vocab_size = draft_vocab_size
    config.eagle_aux_hidden_state_layer_ids = [1, 2, 3]
    config.save_pretrained(path)
    hidden = config.hidden_size
    layer = _decoder_layer(config, inputs=2 * hidden) | {"hidden_norm": (hidden,)}
    shapes = {"fc": (hidden, 3 * hidden), "norm": (hidden,), "lm_head": (draft_vocab_size, hidden)}
    weights = _random_weights(shapes | {f"midlayer.{name}": shape for name, shape in layer.items()}, seed)
    # The distance of each of its tokens to the teacher's.
    weights["d2t"] = torch.arange(draft_vocab_size)
    save_file(weights, path / "model.safetensors")
    return str(path)


def add_mtp_module(model: str, *, seed: int) -> None:
    """Make a Qwen2 or GLM-4.5 by `save_model` one with a random MTP module; the Qwen2 becomes a MiMo, which it is but for that.

    transformers reads the same model as before, without the module.
    """
    file = Path(model) / "config.json"
    config = json.loads(file.read_text())
    is_glm = config["model_type"] == "glm4_moe"
    config["num_nextn_predict_layers"] = 1
    if not is_glm:
        config["architectures"] = ["MiMoForCausalLM"]
    file.write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(model)
    hidden, layer = loaded.hidden_size, _decoder_layer(loaded, with_biases=not is_glm)
    if is_glm:
        prefix = f"model.layers.{loaded.num_hidden_layers}."
        names = {"eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,), "shared_head.norm": (hidden,)}
        layer = {name: shape for name, shape in layer.items() if not name.startswith("mlp.")} | _experts(loaded)
    else:
        prefix = "model.mtp_layers.0."
        norms = {f"{name}_layernorm": (hidden,) for name in ("token", "hidden", "final")}
        names = {"input_proj": (hidden, 2 * hidden), **norms}
    weights = load_file(Path(model) / "model.safetensors")
    weights |= _random_weights({f"{prefix}{name}": shape for name, shape in (names | layer).items()}, seed)
    save_file(weights, Path(model) / "model.safetensors", metadata={"format": "pt"})


def _decoder_layer(config: Any, *, inputs: int | None = None, with_biases: bool = False) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's weights by their names; of its attention's inputs too, where they are not the hidden size."""
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    kv, inputs = config.num_key_value_heads * config.head_dim, inputs or config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (heads, inputs),
        "self_attn.k_proj": (kv, inputs),
        "self_attn.v_proj": (kv, inputs),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (config.intermediate_size, hidden),
        "mlp.up_proj": (config.intermediate_size, hidden),
        "mlp.down_proj": (hidden, config.intermediate_size),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    if with_biases:
        shapes |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", heads), ("k", kv), ("v", kv))}
    return shapes


def _experts(config: Any) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "mlp.gate": (config.n_routed_experts, config.hidden_size),
        "mlp.gate.e_score_correction_bias": (config.n_routed_experts,),
    }
    experts = {f"experts.{i}": config.moe_intermediate_size for i in range(config.n_routed_experts)}
    experts["shared_experts"] = config.moe_intermediate_size * config.n_shared_experts
    for name, size in experts.items():
        shapes |= {f"mlp.{name}.{kind}_proj": (size, config.hidden_size) for kind in ("gate", "up")}
        shapes[f"mlp.{name}.down_proj"] = (config.hidden_size, size)
    return shapes


def _random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Matrices at random, norms of ones and biases of zero."""
    torch.manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("bias"):
            weights[name] = torch.zeros(shape)
        else:
            weights[f"{name}.weight"] = torch.randn(shape) * 0.15 if len(shape) > 1 else torch.ones(shape)
    return weights
