"""The ways of sampling that are one vLLM engine, on Model Runner V2 and with the same options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prompts import Prompt

from methods.base import Counters, Method, Settings

if TYPE_CHECKING:
    from methods.steps import Step


def engine_options(settings: Settings) -> dict[str, Any]:
    """What every engine of a run is started with."""
    options: dict[str, Any] = {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        # Only checked where the cache is given in bytes, and engines that wait for their turn hold memory too.
        "gpu_memory_utilization": 0.05,
        "load_format": settings.load_format,
        "enforce_eager": settings.enforce_eager,
        "disable_log_stats": False,
    }
    if not settings.enforce_eager and not settings.inductor:
        # Graphs of whole decode steps, without Inductor: the same for every method, and it starts in seconds.
        options["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    return options


def speculative(settings: Settings) -> dict[str, Any]:
    """`speculative_config` of an engine with theta as its draft model."""
    config: dict[str, Any] = {
        "model": settings.theta,
        "num_speculative_tokens": settings.num_speculative_tokens,
        "method": "draft_model",
        "draft_sample_method": "probabilistic",  # exact, and the better accepted of the two
    }
    if settings.schedule:
        config["num_speculative_tokens_per_batch_size"] = [list(entry) for entry in settings.schedule]
    if settings.synthetic_acceptance:
        config |= {
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_rates": [0.9**i for i in range(1, settings.num_speculative_tokens + 1)],
        }
    return config


def find_runner(llm: Any) -> Any:
    """The model runner of an engine that runs in this process."""
    core = llm.llm_engine.engine_core
    if not hasattr(core, "engine_core"):
        raise RuntimeError("the engine runs in a process of its own; set VLLM_ENABLE_V1_MULTIPROCESSING=0")
    return core.engine_core.model_executor.driver_worker.worker.model_runner


class Engine(Method):
    """A method that is one engine; `options` are what it asks for beside `engine_options`."""

    model = "teacher"

    def __init__(self, settings: Settings) -> None:
        from vllm import LLM

        self.settings = settings
        model = getattr(settings, self.model)
        self.llm = LLM(model, **{**engine_options(settings), **self.options(settings)})

    def options(self, settings: Settings) -> dict[str, Any]:
        return {}

    def extra_args(self, prompt: Prompt) -> dict[str, Any] | None:
        return None

    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int, seed: int, ignore_eos: bool = True
    ) -> list[list[int]]:
        from vllm import SamplingParams

        params = [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=self.settings.temperature,
                ignore_eos=ignore_eos,
                seed=seed + i,
                detokenize=False,
                extra_args=self.extra_args(prompt),
            )
            for i, prompt in enumerate(prompts)
        ]
        inputs: list[Any] = [{"prompt_token_ids": getattr(prompt, self.model)} for prompt in prompts]
        outputs = self.llm.generate(inputs, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def counters(self) -> Counters:
        metrics = {metric.name: metric for metric in self.llm.get_metrics()}

        def value(name: str) -> int | None:
            return int(metrics[name].value) if name in metrics else None

        return Counters(
            steps=int(metrics["vllm:iteration_tokens_total"].count),
            rounds=value("vllm:spec_decode_num_drafts"),
            drafted=value("vllm:spec_decode_num_draft_tokens"),
            accepted=value("vllm:spec_decode_num_accepted_tokens"),
        )

    def set_acceptance(self, rate: float) -> None:
        # One engine for a whole sweep: the rates lie in a tensor that every verification reads anew.
        find_runner(self.llm).rejection_sampler.synthetic_conditional_rates.fill_(rate)

    def generate_to_the_end(self, prompts: Sequence[Prompt], max_tokens: int, seed: int) -> list[list[int]]:
        """Texts that end where the model ends them, or at `max_tokens`."""
        return self.generate(prompts, max_tokens, seed, ignore_eos=False)

    def memory(self) -> dict[str, float]:
        import torch

        held = super().memory() | {"kv_cache": self.settings.kv_cache_bytes / 2**30}
        if not torch.cuda.is_available():  # where weights are packed anew, and torch counts nothing
            return held
        runner = find_runner(self.llm)
        models = [runner.model]
        if getattr(runner, "speculator", None) is not None:
            models.append(runner.speculator.model)
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for model in models
            for tensor in (*model.parameters(), *model.buffers())
        }
        held["weights"] = sum(storages.values()) / 2**30
        held["beyond_weights_and_kv"] = held["peak"] - held["weights"] - held["kv_cache"]
        return held

    def graph_sizes(self) -> list[int]:
        """Tokens that a CUDA graph was captured for; none on a CPU."""
        return list(self.llm.llm_engine.vllm_config.compilation_config.cudagraph_capture_sizes or [])

    def timed_steps(self, prompts: Sequence[Prompt], max_tokens: int, seed: int) -> list[Step]:
        """`generate` with its steps timed part by part, at the cost of being slower."""
        from methods.steps import StepTimer

        timer = StepTimer(self.llm, find_runner(self.llm))
        timer.start()
        try:
            self.generate(prompts, max_tokens, seed)
        finally:
            steps = timer.stop()
        return steps

    def profile(self, prompts: Sequence[Prompt], max_tokens: int, skip: int, count: int) -> dict[str, Any]:
        """Where the time of steps goes, by torch's profiler; see `steps.profile`."""
        from methods.steps import profile

        return profile(self.llm, lambda: self.generate(prompts, max_tokens, seed=0), skip, count)

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


class Teacher(Engine):
    name = "teacher"
    what = "the teacher alone, in vLLM"


class Theta(Engine):
    name = "theta"
    what = "theta alone, in vLLM"
    model = "theta"


class DraftModel(Engine):
    name = "draft_model"
    what = "the teacher alone, with vLLM's own speculative decoding and theta as its draft model"

    def options(self, settings: Settings) -> dict[str, Any]:
        return {"speculative_config": speculative(settings)}


class Optimal(Engine):
    name = "optimal"
    what = "optimal sampling: q*, this package"

    def options(self, settings: Settings) -> dict[str, Any]:
        return {"logits_processors": ["optimal_sampling"], "speculative_config": speculative(settings)}

    def extra_args(self, prompt: Prompt) -> dict[str, Any]:
        return {"theta_prompt_token_ids": prompt.theta}
