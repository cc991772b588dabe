"""Model pairs to measure: the trained example pair, or published shapes without their weights.

    python benchmarks/pairs.py qwen2.5-3b-1.5b FOLDER      writes FOLDER/teacher and FOLDER/theta

A shape is a config.json with the example pair's tokenizer: its 552 tokens write every prompt of the benchmarks, and the
models' vocabularies stay as wide as published. There are no weights; engines start with load_format="dummy".
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parent.parent / "examples" / "pair"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def qwen2(vocab: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, tied: bool) -> dict[str, Any]:
    """The config.json of a Qwen2 model of this shape."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        # Those of the tokenizer that is put beside it.
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


# The Qwen2.5 shapes as published in the models' config.json; 0.5B and 0.15B of the pair for CPUs are made up here.
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2.5-3b-1.5b": {
        "teacher": qwen2(151_936, 2048, 11_008, 36, 16, 2, tied=True),
        "theta": qwen2(151_936, 1536, 8960, 28, 12, 2, tied=True),
    },
    "qwen2.5-7b-0.5b": {
        "teacher": qwen2(152_064, 3584, 18_944, 28, 28, 4, tied=False),
        "theta": qwen2(151_936, 896, 4864, 24, 14, 2, tied=True),
    },
    "random-0.5b-0.15b": {
        "teacher": qwen2(32_000, 1024, 4096, 30, 16, 4, tied=True),
        "theta": qwen2(32_000, 768, 3072, 14, 12, 4, tied=True),
    },
    "random-tiny": {
        "teacher": qwen2(1000, 128, 256, 3, 4, 2, tied=True),
        "theta": qwen2(1000, 64, 128, 2, 2, 1, tied=True),
    },
}


def num_parameters(config: dict[str, Any]) -> int:
    """Weights of a Qwen2 model, biases of the attention's inputs and norms included."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    attention = hidden * (hidden + 2 * kv) + (hidden + 2 * kv) + hidden * hidden
    layer = attention + 3 * hidden * inner + 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    return layers * layer + embeddings + hidden


def read_config(model: str | Path) -> dict[str, Any]:
    """A model folder's config.json."""
    return json.loads((Path(model) / "config.json").read_text())


def write_shapes(name: str, folder: Path) -> tuple[str, str]:
    """Write a pair of SHAPES below `folder`; the paths of teacher and theta."""
    if name not in SHAPES:
        raise ValueError(f"there is no pair {name!r}; known are {', '.join(SHAPES)}")
    paths = []
    for role, config in SHAPES[name].items():
        target = folder / role
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for file in TOKENIZER:
            shutil.copy(EXAMPLE / role / file, target / file)
        paths.append(str(target))
    return paths[0], paths[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for path in write_shapes(arguments.pair, arguments.folder):
        print(f"{path}: {num_parameters(read_config(path)) / 1e9:.3f} billion parameters, without weights")


if __name__ == "__main__":
    main()
