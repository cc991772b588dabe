"""`optimal-sampling report`: write the report of a run's output as one HTML file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vllm_optimal_sampling.data.filter.command import add_answer_options
from vllm_optimal_sampling.data.options import Once

DESCRIPTION = """\
Write one HTML file about the output of `optimal-sampling generate`: counts and failures, distributions of alpha, KL,
lengths and log-probability ratios, alpha along the sequence, the sum of log Z of whole texts, the tokens where the models
disagree most, samples with every token coloured, and the run's settings. With the options about the final answer, right
texts are told from wrong ones. The file needs no network and nothing beside it."""


ANSWER_OPTIONS = (
    "answer_column",
    "answer_regex",
    "contains_answer",
    "boxed",
    "reference_regex",
    "numeric",
    "ignore_case",
)
"""The options about the final answer, as `FilterSettings` names them."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command `report`; its `handler` takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser(
        "report", help="write an HTML report about what was sampled", description=DESCRIPTION, allow_abbrev=False
    )
    parser.register("action", None, Once)
    parser.add_argument("input", type=Path, metavar="OUTPUT", help="what generate wrote: a file, or a folder of shards")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the report (default: OUTPUT.report.html)")
    parser.add_argument(
        "--tokenizer",
        metavar="MODEL",
        help="name or folder of the model whose tokenizer splits the texts (default: the teacher in the settings)",
    )
    parser.add_argument("--samples", type=int, default=6, metavar="N", help="samples shown in full (default: 6)")
    parser.add_argument(
        "--disagreements",
        type=int,
        default=24,
        metavar="N",
        help="tokens shown where the models disagree (default: 24)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which samples are drawn (default: 0)")
    add_answer_options(parser)
    parser.set_defaults(handler=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the report; 0 where there is one, 1 with a sentence on stderr where there is none."""
    from vllm_optimal_sampling.data.filter.rules import FilterSettings
    from vllm_optimal_sampling.data.report.collect import summarise

    source: Path = arguments.input
    output: Path = arguments.output or source.with_name(source.name + ".report.html")
    try:
        if output.suffix != ".html":
            raise ValueError(f"--output {output} does not end in .html, which the report is; rename it")
        for option, number in (("--samples", arguments.samples), ("--disagreements", arguments.disagreements)):
            if number < 0:
                raise ValueError(f"{option} {number} is less than 0")
        if output.exists() and (output.is_dir() or os.path.samefile(output, source)):
            raise ValueError(
                f"--output {output} is {'a folder' if output.is_dir() else 'the input'}; name another file"
            )
        given = {name: getattr(arguments, name) for name in ANSWER_OPTIONS}
        summary = summarise(
            source,
            answers=FilterSettings(**given) if any(given.values()) else None,
            tokenizer=arguments.tokenizer,
            num_samples=arguments.samples,
            num_disagreements=arguments.disagreements,
            seed=arguments.seed,
        )
        if not summary.num_samples and not summary.num_unreadable:
            raise ValueError(f"{source} has no rows yet, so there is nothing to report")
        partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
        try:
            partial.write_text(summary.to_html(), encoding="utf-8")
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"optimal-sampling report: {error}\n")
        return 1
    sys.stdout.write(
        f"{output}: {summary.num_samples:,} samples, {summary.num_failed + summary.num_unreadable:,} failed"
        + (f", mean alpha {summary.mean_alpha:.3f}" if summary.num_recorded else "")
        + "\n"
    )
    for notice in summary.notices:
        sys.stdout.write(f"note: {notice}\n")
    return 0
