"""New weights for a running engine, as loops that train on what they sampled need them every round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vllm import LLM


def reload_weights(llm: LLM, path: str, model: Literal["theta", "teacher"] = "theta") -> None:
    """Load new weights of the same architecture into a running engine, and drop the prefix cache that old ones filled.

    Call it between `generate` calls: requests that are running are preempted and go on with the new weights. An engine in
    another process, or a server, takes the same two steps as vLLM's own calls: `collective_rpc("reload_weights",
    kwargs={"weights_path": path, "theta": True})`, then `reset_prefix_cache`. vLLM's weight-transfer API reaches theta
    as its draft model (`start_draft_weight_update`).

    Args:
        llm: the engine.
        path: folder with safetensors, as `save_pretrained` writes it.
        model: whose weights.

    Raises:
        ValueError: theta shares the teacher's weights, or the engine has no theta.

    """
    llm.collective_rpc("reload_weights", kwargs={"weights_path": path, **({"theta": True} if model == "theta" else {})})
    llm.llm_engine.reset_prefix_cache(reset_running_requests=True)


def replace_theta_adapter(llm: LLM, path: str) -> None:
    """Make another LoRA adapter theta in a running engine that was started with `theta_lora`, and drop the prefix cache.

    Call it between `generate` calls: requests that are running are preempted and go on with the new adapter. An engine in
    another process, or a server, takes the same two steps as vLLM's own calls: `collective_rpc("reload_weights",
    kwargs={"theta_lora": path})`, then `reset_prefix_cache`.

    Args:
        llm: the engine.
        path: name or folder of the adapter, in PEFT's format; of no higher rank than the engine has room for.

    Raises:
        ValueError: theta has no adapter, or this one cannot be loaded; the old one stays.

    """
    llm.collective_rpc("reload_weights", kwargs={"theta_lora": path})
    llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
