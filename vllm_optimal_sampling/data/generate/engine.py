"""Samples from an engine of this command's own: vLLM's `AsyncLLM` with theta as its draft model."""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable
from typing import Any, NoReturn

from vllm_optimal_sampling.config.memory import default_memory_share
from vllm_optimal_sampling.config.settings import KEY, NAME
from vllm_optimal_sampling.config.theta import NUM_SPECULATIVE_TOKENS, SELF
from vllm_optimal_sampling.data.generate.errors import RowError, RunError, SettingsError
from vllm_optimal_sampling.data.generate.jobs import Sample
from vllm_optimal_sampling.data.generate.progress import Figures
from vllm_optimal_sampling.data.generate.samplers import Prepared
from vllm_optimal_sampling.data.generate.sampling import sampling_params
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.generate.templates import Prompts
from vllm_optimal_sampling.front_end.admission import RequestResolver
from vllm_optimal_sampling.params import ARGUMENTS, ArgumentError
from vllm_optimal_sampling.plugin import FRONT_END


def engine_args(settings: Settings) -> Any:
    """vLLM's arguments for a run: its own options, both models, and optimal sampling.

    Returns:
        An `AsyncEngineArgs`.

    Raises:
        SettingsError: an option is neither this command's nor vLLM's, or has a value that vLLM refuses.

    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise SettingsError(f"neither this command nor vLLM's engine takes these options: {message}")

    parser = AsyncEngineArgs.add_cli_args(Parser(add_help=False))
    if any(word.partition("=")[0] == "--model" for word in settings.engine):
        raise SettingsError("--model is vLLM's name for what is --teacher here; drop it")
    try:
        # With HF_HUB_OFFLINE vLLM looks for the model here already, and for one of its own where none is named.
        arguments = AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", settings.teacher, *settings.engine]))
    except OSError as error:
        raise SettingsError(f"teacher={settings.teacher!r} cannot be loaded: {error}") from None
    except (argparse.ArgumentTypeError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"vLLM refuses its options {' '.join(settings.engine)!r}: {error}") from None
    given = {option.partition("=")[0].replace("_", "-") for option in settings.engine}
    if "--gpu-memory-utilization" not in given:
        arguments.gpu_memory_utilization = default_memory_share(arguments.gpu_memory_utilization)
    arguments.logits_processors = [NAME, *(arguments.logits_processors or ())]
    _check_engine_settings(arguments.additional_config)
    if settings.scores_itself:
        _ask_for_one_model(arguments, settings)
    else:
        ours = {"model": settings.theta, "num_speculative_tokens": settings.num_speculative_tokens}
        arguments.speculative_config = _speculative(arguments.speculative_config or {}, ours)
    return arguments


def _ask_for_one_model(arguments: Any, settings: Settings) -> None:
    """Have theta be the teacher itself; whatever drafts, if anything, is what vLLM's options say."""
    if arguments.speculative_config is None and settings.num_speculative_tokens != NUM_SPECULATIVE_TOKENS:
        raise SettingsError(
            f"--num-speculative-tokens is {settings.num_speculative_tokens}, and nothing drafts where theta is the teacher "
            'itself; name a drafter, such as --speculative-config \'{"method": "ngram"}\''
        )
    if arguments.speculative_config is not None:
        ours = {"num_speculative_tokens": settings.num_speculative_tokens}
        arguments.speculative_config = ours | arguments.speculative_config
    theta = {"theta": SELF} | ({} if settings.theta_lora is None else {"theta_lora": settings.theta_lora})
    additional = arguments.additional_config or {}
    arguments.additional_config = {**additional, KEY: {**additional.get(KEY, {}), **theta}}


def _speculative(given: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """vLLM's speculative configuration with this command's own options, which it may not contradict."""
    for name, option, default in (
        ("model", "--theta", None),
        ("num_speculative_tokens", "--num-speculative-tokens", NUM_SPECULATIVE_TOKENS),
    ):
        if given.get(name, ours[name]) != ours[name] and ours[name] != default:
            raise SettingsError(
                f"{option} is {ours[name]!r}, and --speculative-config has {name}={given[name]!r}; give {option} alone"
            )
    return ours | given


def _check_engine_settings(additional: Any) -> None:
    """Refuse defaults for requests, which would stay without effect: this command's requests are complete."""
    settings = additional.get(KEY) if isinstance(additional, dict) else None
    for name in settings if isinstance(settings, dict) else ():
        if name in ARGUMENTS or name == "theta_system_prompt":
            raise SettingsError(
                f"--additional-config has {name} as the engine's default, and this command gives each request its own; "
                f"give --{name.replace('_', '-')}"
            )


def most_in_flight(vllm_config: Any) -> int:
    """Completions that an engine is given at a time: twice what all its data-parallel ranks run together."""
    # vLLM's `max_num_seqs` is of one rank's scheduler.
    return 2 * vllm_config.scheduler_config.max_num_seqs * vllm_config.parallel_config.data_parallel_size


class LocalEngine:
    """An engine in this machine, for one run. Made by `start`."""

    def __init__(self, engine: Any, settings: Settings) -> None:
        self.engine = engine
        self.max_in_flight = most_in_flight(engine.vllm_config)
        # What equals the default is written out: the engine may have been given other defaults.
        self._arguments = {
            name: value
            for name, value in settings.optimal_sampling.to_extra_args(with_defaults=True).items()
            if value is not None
        }
        if settings.selection is not None:
            self._arguments["return_alpha"] = True  # what candidates are compared by
        self._params = sampling_params(settings)
        self._resolver = RequestResolver(engine.vllm_config)
        from vllm.renderers import ChatParams

        self._theta_variables = settings.theta_chat_template_kwargs
        self._chat_params = ChatParams(
            chat_template_kwargs={
                **settings.teacher_chat_template_kwargs,
                "add_generation_prompt": True,
                "tokenize": False,
            }
        )

    @classmethod
    async def start(cls, settings: Settings) -> LocalEngine:
        """Start the engine; it takes seconds to minutes.

        Raises:
            SettingsError: vLLM or optimal sampling refuses the models or the options.
            RunError: it did not start.

        """
        sampling_params(settings)
        arguments = engine_args(settings)
        from vllm.v1.engine.async_llm import AsyncLLM

        # Ctrl-C goes to all processes of the terminal's group, and the engine has rows to finish.
        os.environ[FRONT_END] = str(os.getpid())
        try:
            engine = AsyncLLM.from_engine_args(arguments)
        except (ValueError, NotImplementedError) as error:
            raise SettingsError(f"the engine cannot start: {error}") from None
        except (RuntimeError, OSError) as error:
            raise RunError(f"the engine did not start: {error} (its own messages stand above)") from error
        finally:
            del os.environ[FRONT_END]
        try:
            started = cls(engine, settings)
        except BaseException:
            engine.shutdown()
            raise
        del engine  # this frame outlives the call, and with it whatever it names
        return started

    async def prepare(self, prompts: Prompts) -> Prepared:
        try:
            if isinstance(prompts.theta, str):
                theta: dict[str, Any] = {"theta_prompt": prompts.theta}
            else:
                theta = {"theta_messages": prompts.theta, "theta_chat_template_kwargs": self._theta_variables}
            theta_ids = self._resolver.theta_token_ids(theta)
        except ArgumentError as error:
            raise RowError(error.message) from None
        request = await self._refusing(self._teacher_input, prompts)
        return Prepared(request, theta_ids)

    async def _teacher_input(self, prompts: Prompts) -> Any:
        renderer = self.engine.renderer
        if isinstance(prompts.teacher, str):
            (rendered,) = await renderer.render_cmpl_async([{"prompt": prompts.teacher}])
            return rendered
        _, (rendered,) = await renderer.render_chat_async([prompts.teacher], self._chat_params)
        return rendered

    async def sample(self, prepared: Prepared, request_id: str, seed: int | None) -> list[Sample]:
        params = self._params.clone()
        params.seed = seed
        params.extra_args = {**self._arguments, "theta_prompt_token_ids": prepared.theta_ids}

        async def draw() -> Any:
            outputs = [output async for output in self.engine.generate(prepared.request, params, request_id)]
            return outputs[-1]

        output = await self._refusing(draw)
        return [_sample(completion) for completion in sorted(output.outputs, key=lambda one: one.index)]

    async def _refusing(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function`; what vLLM has against a request becomes an error of its row."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await function(*arguments)
        except EngineDeadError as error:
            raise RunError(
                "the engine died, and its own messages above say of what. Nothing that was written is lost: run the same "
                "command again to go on. If it ran out of memory, lower --max-num-seqs, --max-model-len or "
                "--gpu-memory-utilization"
            ) from error
        except (VLLMClientError, ValueError, TypeError) as error:
            raise RowError(" ".join(str(error).split())) from None
        except Exception as error:
            # vLLM hides what broke one request (a chat template, say) behind an error of its own.
            cause = error.__cause__ or error
            raise RowError(f"{type(cause).__name__}: {' '.join(str(cause).split())}") from None

    async def figures(self) -> Figures:
        from vllm.v1.metrics.reader import Histogram, get_metrics_snapshot

        figures = Figures()
        for metric in get_metrics_snapshot():
            if isinstance(metric, Histogram) and metric.name == "vllm:optimal_sampling_alpha":
                figures.alpha_sum += metric.sum
                figures.alpha_count += metric.count
            elif metric.name == "vllm:spec_decode_num_draft_tokens":
                figures.drafted += metric.value
            elif metric.name == "vllm:spec_decode_num_accepted_tokens":
                figures.accepted += metric.value
            elif metric.name == "vllm:generation_tokens":
                figures.tokens += metric.value
        return figures

    async def close(self) -> None:
        self.engine.shutdown()
        # vLLM shuts an engine down once more when it is collected, which fails at the interpreter's own end.
        del self.engine
        gc.collect()


def _sample(completion: Any) -> Sample:
    """One of vLLM's completions as a row needs it."""
    record = getattr(completion, "optimal_sampling", None)
    return Sample(
        text=completion.text,
        token_ids=list(completion.token_ids),
        finish_reason=completion.finish_reason,
        record=None if record is None else record.to_json(),
    )
