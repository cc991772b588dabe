"""`optimal-sampling generate`: the run, from the command line to the exit code."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_optimal_sampling.data.generate.options import add_options
from vllm_optimal_sampling.data.options import Once

if TYPE_CHECKING:
    from vllm_optimal_sampling.data.generate.input_row import Source
    from vllm_optimal_sampling.data.generate.progress import Progress
    from vllm_optimal_sampling.data.generate.samplers import Sampler
    from vllm_optimal_sampling.data.generate.settings import Settings

FAILED, REFUSED = 1, 2
"""Exit codes: the run could not go on; it could not begin. Ended by a signal it is 128 and the signal's number."""

DESCRIPTION = """\
Draw training rows from q* for every row of a data set: the teacher's prompt may use the answer, theta's must not.
Rows are written as they finish. The same command again goes on where the last one ended, however that was.

    optimal-sampling generate --teacher Qwen/Qwen2.5-3B-Instruct --theta Qwen/Qwen2.5-1.5B-Instruct --chat \\
        --input problems.csv --output rows.jsonl --max-tokens 1024 \\
        --theta-template '{{ problem }}' --teacher-template '{{ problem }} The answer is {{ answer }}.'

Options that are not listed here go to vLLM's engine, such as --max-model-len or --data-parallel-size.
Exit codes: 0 all rows are in the output (failed ones with their error), 1 the run could not go on, 2 it could not begin,
130 or 143 ended by SIGINT or SIGTERM.
"""


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "generate",
        help="data sets in, training rows sampled from q* out",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not given is left to the YAML file, then to `Settings`
        allow_abbrev=False,
    )
    parser.set_defaults(handler=main, takes_engine_options=True)
    parser.register("action", None, Once)
    add_options(parser)


class _SignalledError(KeyboardInterrupt):
    """A signal came while there was nothing to finish."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def main(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return its exit code."""
    from vllm_optimal_sampling.data.generate.errors import RunError, SettingsError

    signals: list[int] = []

    def interrupt(number: int, _: object) -> None:
        signals.append(number)
        raise _SignalledError(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        values = vars(arguments)
        dry_run = values.pop("dry_run", None)
        if not values.pop("verbose", False):
            _quieten()
        settings = _settings(values)
        if dry_run is not None:
            if dry_run < 1:
                raise SettingsError(f"--dry-run {dry_run} is less than 1 row")
            return _show_prompts(settings, dry_run)
        return _generate(settings, signals)
    except (SettingsError, RunError) as error:
        _say(f"optimal-sampling generate: {error}")
        return REFUSED if isinstance(error, SettingsError) else FAILED
    except _SignalledError as signalled:
        return signalled.code


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  a command speaks to its user


def _quieten() -> None:
    """Have vLLM and Triton, in this process and in its children, say what went wrong and nothing else."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # Triton's interpreter computes with numpy, which warns of every infinity; on a GPU there is no such thing.
    ignored = "ignore::RuntimeWarning:triton.runtime.interpreter"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), ignored)))
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.runtime\.interpreter")


def _settings(values: dict[str, Any]) -> Settings:
    from vllm_optimal_sampling.data.generate.errors import SettingsError
    from vllm_optimal_sampling.data.generate.settings_from import engine_words, settings_from

    for name in ("handler", "takes_engine_options"):
        del values[name]
    options: Sequence[str] = values.pop("engine_options")
    merged: dict[str, Any] = {}
    path = values.pop("config", None)
    if path is not None:
        from vllm_optimal_sampling.data.generate.yaml_file import read_yaml

        merged = read_yaml(path)
    engine = merged.pop("engine", None) or {}
    if not isinstance(engine, dict):
        raise SettingsError(f"engine={engine!r} in {path!r} is not a mapping of vLLM's options to values")
    return settings_from({**merged, **values, "engine": [*engine_words(engine), *options]})


def _opened(settings: Settings) -> tuple[Settings, list[Source]]:
    """The input, looked at: with the settings that it leads to."""
    from vllm_optimal_sampling.data.generate.input_check import check_input
    from vllm_optimal_sampling.data.generate.inputs import open_inputs

    settings.templates()  # whatever is wrong with them, before anything is read
    if settings.sampling:
        from vllm_optimal_sampling.data.generate.sampling import sampling_params

        sampling_params(settings)
    sources = open_inputs(settings.input, settings.split, settings.config_name, Path(settings.output), _say)
    settings = check_input(sources, settings, _say)
    templates = settings.templates()
    if settings.temperature == 0 and settings.num_samples > 1:
        _say(f"at temperature 0 the {settings.num_samples} samples of a row are the same text")
    if settings.selection is not None and settings.selection.select == "resample" and not _is_plain(settings):
        _say(
            "the weights of --select resample are of q* itself: with temperature, top-p, top-k, min-p or penalties the kept "
            "texts follow what is drawn times exp(sum of log Z)"
        )
    if templates.privileged:
        _say(f"theta is not shown: {', '.join(templates.privileged)}")
    return settings, sources


def _is_plain(settings: Settings) -> bool:
    """Whether tokens are drawn from q* as it is."""
    plain = (settings.temperature, settings.top_p, settings.min_p) == (1.0, 1.0, 0.0) and settings.top_k in (0, -1)
    return plain and not settings.sampling


def _show_prompts(settings: Settings, number: int) -> int:
    """What `--dry-run` prints: the first rows' prompts, or what is wrong with the row."""
    from vllm_optimal_sampling.data.generate.inputs import read
    from vllm_optimal_sampling.data.generate.jobs import jobs
    from vllm_optimal_sampling.data.generate.output import FinishedSamples

    if settings.engine:
        from vllm_optimal_sampling.data.generate.engine import engine_args

        engine_args(settings)  # a misspelt option of this command's is one that vLLM does not know either
    settings, sources = _opened(settings)
    rows = itertools.islice(read(sources, settings.shard, settings.limit), number)
    failed = 0
    for job in jobs(rows, settings, FinishedSamples()):
        shown: dict[str, Any] = {"row": job.custom_id}
        if job.error is not None:
            shown["error"] = job.error
        if job.prompts is not None:
            shown |= {
                "teacher": job.prompts.teacher,
                "theta": job.prompts.theta,
                "privileged_context": job.prompts.privileged_context,
            }
        failed += job.error is not None
        print(json.dumps(shown, ensure_ascii=False, indent=2, default=str))  # noqa: T201
    return FAILED if failed else 0


def _generate(settings: Settings, signals: list[int]) -> int:
    """The run. `signals` has those that have come so far."""
    import asyncio

    from vllm_optimal_sampling.data.generate.formats import check_available, write
    from vllm_optimal_sampling.data.generate.identity import identity_of
    from vllm_optimal_sampling.data.generate.inputs import read
    from vllm_optimal_sampling.data.generate.jobs import check_unchanged, jobs
    from vllm_optimal_sampling.data.generate.output import Output
    from vllm_optimal_sampling.data.generate.progress import Progress
    from vllm_optimal_sampling.data.generate.run import Run

    check_available(settings)
    settings, sources = _opened(settings)
    if settings.endpoint is not None:
        from vllm_optimal_sampling.data.generate.endpoint import with_served_model

        settings = with_served_model(settings)
    output = Output(
        settings.rows_path,
        settings.sidecar_path,
        identity_of(settings),
        _versions(),
        retry_errors=settings.retry_errors,
    )
    progress = Progress(settings.log_interval, num_samples=settings.num_samples)
    try:
        if output.finished.count:
            _say(f"{output.num_samples} samples are in {output.path} already, and {_failed(output.num_errors)}")
        check_unchanged(read(sources, limit=settings.limit), settings, output.finished)
        _count_in_the_background(progress, sources, settings)

        left = jobs(read(sources, settings.shard, settings.limit), settings, output.finished, progress.row_skipped)
        run = Run(left, lambda: _started(settings, signals), output, settings, progress)
        asyncio.run(run.run())
    finally:
        progress.close()
        output.close()
    if run.stopped_by is not None:
        _say(f"stopped by {run.stopped_by.name}; run the same command again to go on")
        return 128 + run.stopped_by
    if settings.format != "jsonl":
        write(settings)
    return _summarise(output.num_errors + progress.failed, output.num_samples + progress.samples, settings)


async def _started(settings: Settings, signals: list[int]) -> Sampler:
    """What draws the samples: a running server, engines on Ray, or an engine of this command's own.

    Raises:
        _SignalledError: one of the `signals` came in the meantime, and the sampler is closed again.

    """
    sampler: Sampler
    if settings.endpoint is not None:
        from vllm_optimal_sampling.data.generate.endpoint import Endpoint

        sampler = Endpoint(settings)
    else:
        _say(f"starting the engine: {settings.teacher} with {settings.theta} as theta")
        if settings.ray is not None:
            from vllm_optimal_sampling.data.generate.ray_engines import RayEngines

            sampler = await RayEngines.start(settings)
        else:
            from vllm_optimal_sampling.data.generate.engine import LocalEngine

            sampler = await LocalEngine.start(settings)
    if signals:  # what a signal raised may have been caught by whatever was being imported
        await sampler.close()
        raise _SignalledError(signals[0])
    return sampler


def _count_in_the_background(progress: Progress, sources: list[Source], settings: Settings) -> None:
    from vllm_optimal_sampling.data.generate.inputs import count

    def number() -> None:
        progress.total = count(sources, settings.shard, settings.limit)

    threading.Thread(target=number, daemon=True).start()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("vllm-optimal-sampling", "vllm", "torch", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _failed(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'} failed"


def _summarise(num_errors: int, num_samples: int, settings: Settings) -> int:
    """Say what the output has, and return the exit code."""
    if num_errors:
        _say(
            f"{_failed(num_errors)}; the column error of {settings.rows_path} has the reason. --retry-errors draws "
            f"{'it' if num_errors == 1 else 'them'} again"
        )
    if num_errors and not num_samples:
        _say("no row succeeded")
        return FAILED
    _say(f"all rows are in {settings.output}")
    return 0
