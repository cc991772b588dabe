"""Patches in the worker's process. The rest is `worker/worker.py`, `worker/model_runner.py` and `worker/samplers.py`."""

from __future__ import annotations

from typing import Any

from vllm_optimal_sampling.config.settings import is_enabled
from vllm_optimal_sampling.config.theta import scores
from vllm_optimal_sampling.hooks.registry import patch, register


@patch(
    "vllm.v1.worker.gpu.model_runner",
    "init_speculator",
    "vllm_config device req_states",
    "vLLM's speculators are a closed list",
    upstream="https://github.com/vllm-project/vllm/pull/55990",
)
def init_speculator(original: Any, vllm_config: Any, device: Any, req_states: Any) -> Any:
    if not is_enabled(vllm_config) or scores(vllm_config):
        return original(vllm_config, device, req_states)
    from vllm_optimal_sampling.worker.theta.speculator import ThetaSpeculator

    return ThetaSpeculator(vllm_config, device, req_states)


@register(
    "vllm.v1.worker.gpu.model_runner",
    "AsyncOutput",
    "model_runner_output sampler_output num_sampled_tokens main_stream copy_stream check_ep_fault pending_aux_output",
    "records go to the host with the tokens, on the same stream and behind the same event, and a step's output has no "
    "field for them",
)
def async_output(original: type) -> type:
    from vllm_optimal_sampling.worker.async_output import with_records

    return with_records(original)


# For the first token of a request, and for those that are verified.
@patch(
    ("vllm.v1.worker.gpu.sample.sampler", "vllm.v1.worker.gpu.sample.states"),
    "apply_top_k_top_p",
    "logits k p ...",
    "vLLM drops the least likely token of a row that needs all of them for top-p (see `worker/relaxed_top_p.py`)",
)
def apply_top_k_top_p(original: Any, logits: Any, k: Any, p: Any, *args: Any, **kwargs: Any) -> Any:
    from vllm_optimal_sampling.worker.relaxed_top_p import relax_if_drawing_with_theta

    relax_if_drawing_with_theta(logits, k, p)
    return original(logits, k, p, *args, **kwargs)
