"""Models in int8 as compressed-tensors keeps them, and what vLLM alone computes with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from vllm import LLM, SamplingParams

from support.engines import stop_engine
from support.random_models import save_model

INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "strategy": "token",
                "symmetric": True,
                "dynamic": True,
            },
        }
    },
}
"""Weights with a scale for each output channel, activations with one for each token."""


def save_int8_model(path: Path, **options: Any) -> str:
    """Save a random model by `save_model`, its linear layers in int8."""
    save_model(path, **options)
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name]
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": INT8}))
    return str(path)


class EngineReference:
    """Both models by vLLM alone, in place of `Reference`: a quantised model has no float64 of its own."""

    def __init__(self, teacher: str, theta: str):
        self.teacher, self.theta = (
            SimpleNamespace(path=path, config=AutoConfig.from_pretrained(path)) for path in (teacher, theta)
        )
        self._engines: dict[str, LLM] = {}
        self._known: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}

    def logits(
        self, model: Any, tokens: Sequence[int], image: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Log-probabilities [vocab] after `tokens`, text alone, in float64; a sequence's prefixes are kept."""
        assert image is None, "the quantised models read text"
        key = (model.path, tuple(tokens))
        if key not in self._known:
            params = SamplingParams(max_tokens=1, prompt_logprobs=-1)
            prompt = {"prompt_token_ids": [*tokens, 0]}  # the last token of a prompt is followed by what is drawn
            (output,) = self._engine(model.path).generate([prompt], params, use_tqdm=False)
            assert output.prompt_logprobs is not None
            for length, row in enumerate(output.prompt_logprobs[1:], start=1):
                assert row is not None
                values = torch.tensor([row[token].logprob for token in range(model.config.vocab_size)])
                self._known[model.path, tuple(tokens[:length])] = values.double()
        return self._known[key]

    def _engine(self, path: str) -> LLM:
        if path not in self._engines:
            self._engines[path] = LLM(
                path,
                dtype="float32",
                enforce_eager=True,
                max_model_len=512,
                max_logprobs=-1,
                kv_cache_memory_bytes=1 << 26,
                enable_prefix_caching=False,
            )
        return self._engines[path]

    def close(self) -> None:
        for llm in self._engines.values():
            stop_engine(llm)
