"""Subclasses of vLLM's scheduler and worker, or of a user's own, by names that vLLM resolves in any process.

vLLM takes both classes by a qualified name, and which class it would have taken is only known once it has built its
configuration: another one on a CPU than on a GPU, another with asynchronous scheduling, or the user's. So the name says
which class is to be extended, and the class is made where the name is resolved:

    vllm_optimal_sampling.subclasses.worker:vllm:v1:worker:gpu_worker:Worker
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from vllm_optimal_sampling.config.errors import UnsupportedEngineError

SCHEDULER = "scheduler"
WORKER = "worker"

_MIXINS = {
    SCHEDULER: ("vllm_optimal_sampling.engine_core.scheduler", "ThetaSchedulerMixin", "--scheduler-cls"),
    WORKER: ("vllm_optimal_sampling.worker.worker", "ThetaWorkerMixin", "--worker-cls"),
}


def name_of(kind: str, base: str | type) -> str:
    """The name under which the subclass of `base` is found.

    Args:
        kind: `SCHEDULER` or `WORKER`.
        base: the class to extend, or its qualified name.

    Raises:
        UnsupportedEngineError: `base` has no name by which another process could import it, or is not what vLLM runs.
    """
    option = _MIXINS[kind][2]
    qualified = base if isinstance(base, str) else f"{base.__module__}.{base.__qualname__}"
    if is_subclass_name(qualified):
        return qualified
    try:
        found = _import(qualified)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnsupportedEngineError(
            f"optimal sampling cannot start: {option} names {qualified}, which cannot be imported ({error}); put the class "
            "at the top level of a module that every process of the engine can import"
        ) from error
    expected = _import(
        "vllm.v1.core.sched.scheduler.Scheduler" if kind == SCHEDULER else "vllm.v1.worker.gpu_worker.Worker"
    )
    if not isinstance(found, type) or not issubclass(found, expected):
        raise UnsupportedEngineError(
            f"optimal sampling cannot start: {option} names {qualified}, which does not extend vLLM's "
            f"{expected.__module__}.{expected.__name__}; theta's part is added to that class. Extend it, or drop {option}"
        )
    return f"{__name__}.{kind}:{qualified.replace('.', ':')}"


def is_subclass_name(name: object) -> bool:
    """Whether `name_of` made this name."""
    return isinstance(name, str) and name.startswith(f"{__name__}.")


def resolve(name: str) -> type:
    """The class behind a name of `name_of`."""
    return _subclass(name.removeprefix(f"{__name__}."))


@functools.cache
def _subclass(key: str) -> type:
    kind, _, base_name = key.partition(":")
    module, mixin_name, _ = _MIXINS[kind]
    mixin = getattr(importlib.import_module(module), mixin_name)
    base = _import(base_name.replace(":", "."))
    return type(f"Theta{base.__name__}", (mixin, base), {"__module__": __name__, "__qualname__": key})


def _import(qualified: str) -> Any:
    module, _, name = qualified.rpartition(".")
    return getattr(importlib.import_module(module), name)


def __getattr__(name: str) -> type:
    if name.partition(":")[0] not in _MIXINS or ":" not in name:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _subclass(name)
