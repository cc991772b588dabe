"""Quantised teachers and thetas at start: each model keeps its method, and new weights for a quantised theta are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from configurations import save_model
from vllm.config import replace

from support.quantised_models import INT8
from vllm_optimal_sampling.config.settings import KEY
from vllm_optimal_sampling.config.theta import theta_model_config
from vllm_optimal_sampling.worker.theta.new_weights import ThetaUpdates

METHODS: dict[str, dict[str, Any]] = {
    "compressed-tensors": INT8,
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models without weights, by method."""
    folder: Path = tmp_path_factory.mktemp("quantised")
    paths = {}
    for method, config in METHODS.items():
        paths[method] = save_model(folder / method)
        file = Path(paths[method]) / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    return paths


def family(method: str | None) -> str | None:
    """vLLM has several names for one format, by what computes it."""
    return None if method is None else next(name for name in METHODS if name in method)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_each_model_keeps_its_method(
    method: str, scores: bool, quantised: dict[str, str], build_config: Callable[..., Any], teacher: str, theta: str
) -> None:
    for models in ((quantised[method], theta), (teacher, quantised[method]), (quantised[method], quantised["fp8"])):
        arguments: dict[str, Any] = {"speculative_config": {"model": models[1], "num_speculative_tokens": 2}}
        if scores:
            arguments = {"speculative_config": None, "additional_config": {KEY: {"theta": models[1]}}}
        config = build_config(model=models[0], dtype="bfloat16", **arguments)
        own = replace(config, model_config=theta_model_config(config), quant_config=None)  # as the worker loads it
        for path, quant_config in zip(models, (config.quant_config, own.quant_config), strict=True):
            expected = next((name for name, quantised_path in quantised.items() if quantised_path == path), None)
            assert family(None if quant_config is None else quant_config.get_name()) == expected
        runner = SimpleNamespace(vllm_config=config, theta=SimpleNamespace(check_own_weights=lambda: None))
        refusal = ThetaUpdates(runner).refusal({}, None)
        assert refusal is not None and ("is quantised" in refusal) == (models[1] in quantised.values())
