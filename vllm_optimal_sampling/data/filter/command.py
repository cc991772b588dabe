"""`optimal-sampling filter`: keep the rows of a run's output that are fit to train on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_optimal_sampling.data.options import Once
from vllm_optimal_sampling.selection import AGGREGATES, SCORED

if TYPE_CHECKING:
    from vllm_optimal_sampling.data.filter.rules import Rules

DESCRIPTION = """\
Keep the rows of the output of `optimal-sampling generate` that pass every rule, and say how many each rule dropped.
Rules are asked in this order: errors, truncation, length, answer, the best of a group, duplicates, rows of a prompt. The
input is left as it is; the output is put in place when it is complete."""

OUTPUT_SUFFIXES = (".jsonl", ".parquet")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command `filter`; its `handler` takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser(
        "filter", help="keep the rows that are fit to train on", description=DESCRIPTION, allow_abbrev=False
    )
    parser.register("action", None, Once)
    parser.add_argument("input", type=Path, metavar="INPUT", help="what generate wrote: a file, or a folder of shards")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="a .jsonl or .parquet file")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")

    rows = parser.add_argument_group("sound rows")
    rows.add_argument(
        "--drop-errors", action=argparse.BooleanOptionalAction, default=True, help="drop rows with an error (default)"
    )
    rows.add_argument("--drop-truncated", action="store_true", help="drop rows that ended at the token limit")
    rows.add_argument("--min-tokens", type=int, metavar="N", help="drop shorter completions")
    rows.add_argument("--max-tokens", type=int, metavar="N", help="drop longer completions")

    add_answer_options(parser)

    best = parser.add_argument_group("the best of several")
    best.add_argument(
        "--best-of-group", metavar="COLUMN", help="keep one of the rows with the same value in it, such as custom_id"
    )
    best.add_argument(
        "--by",
        metavar="HOW",
        help=f"one of {', '.join(SCORED)}: the largest sum of log Z (default), one at random with weights exp(sum of log Z), "
        "the likeliest under the teacher",
    )
    best.add_argument(
        "--select-by",
        metavar="HOW",
        help=f"{' or '.join(AGGREGATES)} over the tokens, for log_z and teacher_logprob (sum)",
    )
    best.add_argument("--seed", type=int, metavar="S", help="of the choices of resample (0)")

    rest = parser.add_argument_group("repetition")
    rest.add_argument(
        "--deduplicate",
        choices=("completion", "prompt+completion"),
        help="keep the first of the rows where this is the same but for spaces",
    )
    rest.add_argument("--max-per-prompt", type=int, metavar="N", help="keep at most N rows of a prompt, the first ones")
    parser.set_defaults(handler=run)
    return parser


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about how answers are read and compared."""
    answer = parser.add_argument_group("the final answer")
    answer.add_argument("--answer-column", metavar="NAME", help="the column with the right answer, or a list of them")
    answer.add_argument(
        "--answer-regex",
        metavar="REGEX",
        help="the answer is the last match in the completion: its group `answer`, else the first group, else all of it",
    )
    answer.add_argument(
        "--contains-answer",
        action="store_true",
        help="the right answer is anywhere in the completion, as words of its own: not 72 in 172 or 72.5",
    )
    answer.add_argument("--boxed", action="store_true", help=r"the answer is in the last \boxed{...}")
    answer.add_argument(
        "--reference-regex", metavar="REGEX", help="how the right answer is read from its column, such as '#### (.*)'"
    )
    answer.add_argument(
        "--numeric", action="store_true", help="compare numbers by their value: 1,000 is 1000.0, 1/2 is 0.5"
    )

    answer.add_argument(
        "--ignore-case", action="store_true", help="answers are compared as they are written; with this, Yes is yes"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the rows that stay; 0 where that was done, 1 with a sentence on stderr where it was not."""
    from vllm_optimal_sampling.data.filter.rules import FilterSettings, Rules
    from vllm_optimal_sampling.data.filter.writing import filter_rows

    source: Path = arguments.input
    output: Path = arguments.output
    try:
        settings = FilterSettings(**{field.name: getattr(arguments, field.name) for field in fields(FilterSettings)})
        check_output(source, output, arguments.overwrite)
        rules = Rules(settings)
        filter_rows(source, output, rules)
        _write_settings(source, output, rules)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"optimal-sampling filter: {error}\n")
        return 1
    sys.stdout.write(rules.table())
    if rules.num_read == rules.dropped.total():
        sys.stderr.write(f"optimal-sampling filter: no row is left; {output} is empty\n")
    return 0


def check_output(source: Path, output: Path, overwrite: bool) -> None:
    """Refuse an output that is a part of the input, by whatever name, or that would be lost.

    Raises:
        ValueError: with the reason.
    """
    from vllm_optimal_sampling.data.rows import files_of

    if output.suffix not in OUTPUT_SUFFIXES:
        raise ValueError(
            f"--output {output} ends in {output.suffix!r}; it has to end in {' or '.join(OUTPUT_SUFFIXES)}"
        )
    if not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output} is in a folder that is not there")
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; name a file")
    if output.exists() and any(os.path.samefile(file, output) for file in files_of(source)):
        raise ValueError(f"--output {output} is the input, which is never overwritten; name another file")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--output {output} is in the input's folder, and would be a part of it; name another place")
    if output.exists() and not overwrite:
        raise ValueError(f"--output {output} is already there; --overwrite replaces it")


def _write_settings(source: Path, output: Path, rules: Rules) -> None:
    """The settings of the run that sampled the rows, with those of the filter, beside the output."""
    from vllm_optimal_sampling.data.filter.writing import put_in_place
    from vllm_optimal_sampling.data.rows import read_settings, settings_path

    settings, _ = read_settings(source)
    given = {name: value for name, value in asdict(rules.settings).items() if value not in (None, False)}
    dropped = {name: count for name, count in rules.dropped.items() if count}
    own = {"input": source.name, **given, "rows_read": rules.num_read, "rows_dropped": dropped}
    with put_in_place(settings_path(output)) as partial:
        partial.write_text(json.dumps({**(settings or {}), "filter": own}, indent=2) + "\n", encoding="utf-8")
