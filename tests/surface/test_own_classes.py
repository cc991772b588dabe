"""An engine with optimal sampling runs subclasses of vLLM's scheduler and worker, also of a user's own; others do not."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from configurations import build
from vllm.exceptions import VLLMValidationError
from vllm.plugins import load_general_plugins
from vllm.sampling_params import SamplingParams
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from vllm_optimal_sampling import subclasses
from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.engine_core.scheduler import ThetaSchedulerMixin
from vllm_optimal_sampling.worker.worker import ThetaWorkerMixin

BuildConfig = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    load_general_plugins()


@pytest.fixture
def their_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a user, with a scheduler and a worker."""
    (tmp_path / "their_module.py").write_text(
        "from vllm.v1.core.sched.scheduler import Scheduler\n"
        "from vllm.v1.worker.cpu_worker import CPUWorker\n"
        "class TheirScheduler(Scheduler): pass\n"
        "class TheirWorker(CPUWorker): pass\n"
        "class Extension:\n"
        "    def answer(self): return 42\n"
        "class NoScheduler: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("their_module")
    monkeypatch.setitem(sys.modules, "their_module", module)
    return module


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_scheduler_is_a_subclass_of_the_one_that_vllm_chose(build_config: BuildConfig, asynchronous: bool) -> None:
    config = build_config()
    config.scheduler_config.async_scheduling = asynchronous
    config.scheduler_config.scheduler_cls = None
    from vllm_optimal_sampling.config.engine_config import _use_own_classes

    _use_own_classes(config)
    found = pickle.loads(pickle.dumps(config)).scheduler_config.get_scheduler_cls()
    assert issubclass(found, ThetaSchedulerMixin) and issubclass(found, Scheduler)
    assert issubclass(found, AsyncScheduler) is asynchronous


def test_the_worker_is_a_subclass_of_the_platforms(build_config: BuildConfig) -> None:
    found = resolve_obj_by_qualname(build_config().parallel_config.worker_cls)
    assert issubclass(found, ThetaWorkerMixin) and issubclass(found, Worker)
    # As vLLM injects an extension of its workers (verl, TRL).
    kept = found.__bases__
    extension = type("Extension", (), {"answer": lambda self: 42})
    try:
        found.__bases__ = (*kept, extension)
        assert found.answer(None) == 42  # type: ignore[attr-defined]
    finally:
        found.__bases__ = kept


def test_a_users_own_classes_are_extended(build_config: BuildConfig, their_module: ModuleType) -> None:
    by_name = build_config(scheduler_cls="their_module.TheirScheduler", worker_cls="their_module.TheirWorker")
    by_class = build_config(scheduler_cls=their_module.TheirScheduler)
    for config in (by_name, by_class):
        found = config.scheduler_config.get_scheduler_cls()
        assert issubclass(found, ThetaSchedulerMixin) and issubclass(found, their_module.TheirScheduler)
    worker = resolve_obj_by_qualname(by_name.parallel_config.worker_cls)
    assert issubclass(worker, ThetaWorkerMixin) and issubclass(worker, their_module.TheirWorker)
    assert issubclass(worker, CPUWorker)


def test_a_class_that_is_no_scheduler_is_refused(build_config: BuildConfig, their_module: ModuleType) -> None:
    with pytest.raises(
        UnsupportedEngineError, match=r"--scheduler-cls names their_module\.NoScheduler, which does not extend"
    ):
        build_config(scheduler_cls=their_module.NoScheduler)
    with pytest.raises(UnsupportedEngineError, match=r"--scheduler-cls names .*, which cannot be imported"):
        build_config(scheduler_cls=type("Local", (Scheduler,), {"__qualname__": "somewhere.<locals>.Local"}))


def test_names_that_are_none_are_not_found() -> None:
    for name in ("nothing", "thing:vllm:v1", "__path__"):
        with pytest.raises(AttributeError):
            getattr(subclasses, name)


def test_an_engine_that_did_not_ask_keeps_vllms_checks(
    engine_args: BuildConfig, teacher: str, narrower_theta: str
) -> None:
    """Also after another engine of this process asked, with the same pair of models."""
    speculative = {"model": narrower_theta, "num_speculative_tokens": 2, "method": "draft_model"}
    asked = build(engine_args(speculative_config=speculative))
    assert asked.speculative_config.draft_model_config.get_vocab_size() != asked.model_config.get_vocab_size()
    with pytest.raises(ValueError, match="should have the same vocabulary size"):
        build(engine_args(logits_processors=None, speculative_config=speculative))
    # And the one that asked keeps its leave: vLLM validates again whenever it copies a configuration.
    from vllm.config.utils import replace

    replace(pickle.loads(pickle.dumps(asked)), instance_id="copied")


def test_only_the_two_refusals_of_speculation_are_lifted(build_config: BuildConfig, engine_args: BuildConfig) -> None:
    asked = build_config().speculative_config
    plain = build(
        engine_args(logits_processors=None, speculative_config={"method": "ngram", "num_speculative_tokens": 2})
    ).speculative_config
    for params in (SamplingParams(min_p=0.1), SamplingParams(logit_bias={3: 1.0})):
        before = (params.min_p, params.logit_bias)
        params._validate_spec_decode(asked)
        assert (params.min_p, params.logit_bias) == before
        with pytest.raises(VLLMValidationError, match="min_p and logit_bias"):
            params._validate_spec_decode(plain)
