"""New weights for a running engine, as loops that train on what they sampled need them every round."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vllm_optimal_sampling.argument_checks import ArgumentError

if TYPE_CHECKING:
    import torch
    from vllm import LLM

NAME = "named_parameters"
SHARED_MEMORY = "/dev/shm"


def reload_weights(llm: LLM, path: str, model: Literal["theta", "teacher"] = "theta") -> None:
    """Load new weights of the same architecture into a running engine, and drop the prefix cache that old ones filled.

    Call it between `generate` calls: requests that are running are preempted and go on with the new weights. An engine in
    another process, or a server, takes the same two steps as vLLM's own calls: `collective_rpc("reload_weights",
    kwargs={"weights_path": path, "theta": True})`, then `reset_prefix_cache`. vLLM's weight-transfer API reaches theta
    as its draft model (`start_draft_weight_update`). A trainer in the same program takes `update_theta`.

    Args:
        llm: the engine.
        path: folder with safetensors, as `save_pretrained` writes it.
        model: whose weights.

    Raises:
        ArgumentError: (a ValueError) the folder has no weights. vLLM would notice when half of the model is gone.
        ValueError: theta shares the teacher's weights, or the engine has no theta.

    """
    if not any(Path(path).glob("*.safetensors")):
        raise ArgumentError(
            "path", f"path={path!r} is no folder with *.safetensors; give one, as save_pretrained writes it"
        )
    llm.collective_rpc("reload_weights", kwargs={"weights_path": path, **({"theta": True} if model == "theta" else {})})
    llm.llm_engine.reset_prefix_cache(reset_running_requests=True)
    if model == "theta":
        _count_version(llm)


def update_theta(
    llm: LLM,
    named_parameters: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]] | torch.nn.Module | None = None,
    *,
    adapter_path: str | os.PathLike[str] | None = None,
) -> int:
    """Give theta new weights in place, on every rank. All names and shapes are checked before anything is written.

    Cached blocks that hold theta's old keys and values are not used again; those of requests that theta does not read stay.
    An engine in this process reads the tensors where they are. For one in another process they are written to shared
    memory (`/dev/shm`, else the folder for temporary files), so it must run on this machine.

    Args:
        llm: the engine. Nothing may be running in it.
        named_parameters: theta's parameters under the names of its checkpoint: a mapping, an iterator of (name, tensor) such
            as `model.named_parameters()`, or the model. Any floating dtype, on any device, whole: shards are gathered
            by the caller. Of tied weights either name may be left out. Nothing is kept of them.
        adapter_path: instead, for a theta that is the teacher with a LoRA adapter (`theta_lora`): the folder of the next one,
            as PEFT's `save_pretrained` writes it. It has to stay there: where requests name many adapters, vLLM lets go of
            those that were not used lately, and reads them again.

    Returns:
        The version of theta from now on: 1 after the first update, one more with each. It is `theta_version` of the records
        (`TokenRecords`) of every later request.

    Raises:
        ArgumentError: (a ValueError) the weights are not this theta's: a name that it does not have, one that is missing,
            another shape, an adapter of another model; or theta has no weights of its own. The old weights stay.
        RuntimeError: requests are running, or the engine sleeps; nothing was changed. Or the engine failed while it loaded
            the weights: theta is then part old and part new, until an update succeeds.

    """
    if (named_parameters is None) == (adapter_path is None):
        raise ArgumentError(NAME, "give either named_parameters or adapter_path")
    tensors = None if named_parameters is None else _tensors(named_parameters)
    adapter = None if adapter_path is None else os.fspath(adapter_path)
    _check_idle(llm)
    shapes = None if tensors is None else {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_none_refuses(llm.collective_rpc("refusal_of_theta", args=(shapes, adapter)), adapter)
    try:
        with _reachable(llm, tensors) as arguments:
            refusals = llm.collective_rpc("update_theta", args=(*arguments, adapter))
    except Exception as error:
        _count_version(llm)  # whatever was written, cached blocks are not of it
        raise RuntimeError(
            f"theta's new weights could not be loaded ({error}), and it may now have some of them; update it again before you "
            "sample, or start the engine anew"
        ) from error
    _check_none_refuses(refusals, adapter)
    return _count_version(llm)


def _check_none_refuses(refusals: Iterable[str | None], adapter: str | None) -> None:
    """Raise ArgumentError for the first rank that has something against the weights."""
    for refusal in refusals:
        if refusal is not None:
            raise ArgumentError(NAME if adapter is None else "adapter_path", refusal)


def theta_version(llm: LLM) -> int:
    """How often theta's weights were replaced in this engine, from this process."""
    version: int = llm.llm_engine.input_processor.theta_resolver.theta_version
    return version


def _count_version(llm: LLM) -> int:
    engine = llm.llm_engine
    version = theta_version(llm) + 1
    engine.input_processor.theta_resolver.theta_version = version  # for the block hashes of requests
    engine.output_processor.theta_version = version  # for their records
    return version


def _tensors(given: Any) -> dict[str, torch.Tensor]:
    """The parameters by name, detached.

    Raises:
        ArgumentError: something else was given.

    """
    import torch

    if isinstance(given, torch.nn.Module):
        given = given.named_parameters()
    try:
        pairs = list(given.items() if isinstance(given, Mapping) else given)
        tensors = {name: tensor.detach() for name, tensor in pairs}
    except (TypeError, ValueError, AttributeError):
        raise ArgumentError(
            NAME,
            f"named_parameters is a {type(given).__name__}, and not tensors by name; give model.named_parameters(), a state "
            "dict or the model",
        ) from None
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):
            raise ArgumentError(NAME, f"{name} is one rank's shard; gather it first (tensor.full_tensor())")
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise ArgumentError(NAME, f"{name} is not a tensor of floats; give the parameters as they are trained")
        if tensor.is_meta:
            raise ArgumentError(NAME, f"{name} is on the meta device and has no values; load the model first")
    return tensors


def _check_idle(llm: LLM) -> None:
    engine = llm.llm_engine
    if not hasattr(engine.input_processor, "theta_resolver"):
        raise ArgumentError("llm", "this engine does no optimal sampling, so there is no theta to update")
    if num_open := engine.get_num_unfinished_requests():
        raise RuntimeError(
            f"the engine is at work on {num_open} requests, which would go on with other weights; finish them first"
        )
    if engine.is_sleeping():
        raise RuntimeError("the engine sleeps, and its weights may be away; wake it up (wake_up) before the update")


@contextlib.contextmanager
def _reachable(
    llm: LLM, tensors: dict[str, torch.Tensor] | None
) -> Iterator[tuple[dict[str, torch.Tensor] | None, str | None]]:
    """The tensors where the workers can read them: themselves in this process, else a file."""
    from vllm.v1.engine.core_client import InprocClient

    engine = llm.llm_engine
    if tensors is None or (
        isinstance(engine.engine_core, InprocClient) and engine.vllm_config.parallel_config.world_size == 1
    ):
        yield tensors, None
        return
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(
        prefix="theta-", dir=SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    ) as folder:
        path = str(Path(folder) / "model.safetensors")
        save_file(_apart(tensors), path)
        yield None, path


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as a file of safetensors takes them: contiguous, and no two on one storage."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor.contiguous()
        seen.add(storage)
    return apart
