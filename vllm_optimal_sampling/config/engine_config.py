"""vLLM's configuration of an engine with optimal sampling: how it is built, marked and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.config.engine_args import check_engine_args, prepare_engine_args
from vllm_optimal_sampling.config.graph_sizes import choose_graph_sizes, has_own_sizes
from vllm_optimal_sampling.config.refusals import check_supported
from vllm_optimal_sampling.config.state_layers import caches_states
from vllm_optimal_sampling.config.theta import read_text_only, scores, theta_model_config

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig, VllmConfig
    from vllm.engine.arg_utils import EngineArgs

logger = logging.getLogger(__name__)

# Whether this context builds the configuration of an engine with optimal sampling.
_building: ContextVar[bool] = ContextVar("building_with_theta", default=False)


def create_engine_config(engine_args: EngineArgs, create: Callable[[], VllmConfig]) -> VllmConfig:
    """Build an engine's configuration, and check it where the engine asks for optimal sampling.

    Args:
        engine_args: the arguments, as the user gave them.
        create: vLLM's own `create_engine_config` of these arguments.

    Raises:
        ValueError: settings or arguments are refused, see `prepare_engine_args`, `check_engine_args`, `check_supported`.

    """
    with prepare_engine_args(engine_args) as is_enabled:
        if not is_enabled:
            return create()
        check_engine_args(engine_args)
        wants_caching = engine_args.enable_prefix_caching  # vLLM writes there what it takes by default
        with _builds_with_theta():
            vllm_config = create()
            if caches_states(vllm_config) and not wants_caching:
                engine_args.enable_prefix_caching = False
                vllm_config = create()
                logger.info(
                    "Prefix caching is off: it would restore the teacher's state behind a prompt, and not theta's."
                )
    check_supported(vllm_config)
    if not scores(vllm_config):
        read_text_only(theta_model_config(vllm_config))
    if vllm_config.speculative_config is not None:
        vars(vllm_config.speculative_config)["drafts_with_theta"] = True
    if not has_own_sizes(engine_args):
        choose_graph_sizes(vllm_config)
    _use_own_classes(vllm_config)
    return vllm_config


@contextmanager
def _builds_with_theta() -> Iterator[None]:
    token = _building.set(True)
    try:
        yield
    finally:
        _building.reset(token)


def drafts_with_theta(speculative_config: SpeculativeConfig | None) -> bool:
    """Whether this is the speculative configuration of an engine with optimal sampling.

    A speculative configuration does not know which engine it belongs to, and vLLM validates it while it is built and again
    whenever an engine's configuration is copied. So `create_engine_config` marks it; copies of the engine's configuration,
    pickled ones too, keep the mark.
    """
    return _building.get() or (speculative_config is not None and "drafts_with_theta" in vars(speculative_config))


def _use_own_classes(vllm_config: VllmConfig) -> None:
    """Let the engine run our subclasses of its scheduler and worker, which may be the user's own."""
    from vllm_optimal_sampling import subclasses

    scheduler_config: Any = vllm_config.scheduler_config
    base = scheduler_config.scheduler_cls
    if base is None:
        asynchronous = scheduler_config.async_scheduling
        base = f"vllm.v1.core.sched.{'async_scheduler.AsyncScheduler' if asynchronous else 'scheduler.Scheduler'}"
    scheduler_config.scheduler_cls = subclasses.name_of(subclasses.SCHEDULER, base)
    parallel_config: Any = vllm_config.parallel_config
    parallel_config.worker_cls = subclasses.name_of(subclasses.WORKER, parallel_config.worker_cls)
