"""The command `optimal-sampling`. Each subcommand is a module with `add_parser(subparsers)`, listed in `COMMANDS`.

A subcommand's parser sets `handler=`, a function of the parsed arguments that returns the exit code. One that passes
options on to vLLM sets `takes_engine_options=True` and finds what its parser did not know in `engine_options`.

Nothing heavy is imported here or by `add_parser`, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from vllm_optimal_sampling import __version__

COMMANDS = (
    "vllm_optimal_sampling.data.generate.command",
    "vllm_optimal_sampling.data.filter.command",
    "vllm_optimal_sampling.data.report.command",
)
"""Modules of the subcommands, in the order of `--help`."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="optimal-sampling",
        description="Training data from q*, the distribution that is equally far from a teacher and a student.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(name).add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (the process's own arguments by default) and return its exit code."""
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if getattr(arguments, "takes_engine_options", False):
        arguments.engine_options = unknown
    elif unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    code: int = arguments.handler(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
