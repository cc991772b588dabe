"""The options of `optimal-sampling generate`, by group. `Settings` says what each means and what is refused."""

from __future__ import annotations

import argparse

from vllm_optimal_sampling.alpha_methods import ALPHA_METHODS
from vllm_optimal_sampling.data.options import json_object, pair
from vllm_optimal_sampling.selection import AGGREGATES, SELECTIONS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them all, in the order of `--help`."""
    parser.add_argument("--config", metavar="FILE", help="options from a YAML file; those given here come first")
    _add_models(parser)
    _add_input(parser)
    _add_prompts(parser)
    _add_sampling(parser)
    _add_selection(parser)
    _add_alpha(parser)
    _add_output(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models")
    group.add_argument("--teacher", metavar="MODEL", help="name or folder")
    group.add_argument(
        "--theta",
        metavar="MODEL",
        help='the student: smaller, with the same tokenizer, or "self" for the teacher itself',
    )
    group.add_argument("--theta-lora", metavar="ADAPTER", help="with --theta self: the student is the teacher with it")
    group.add_argument("--num-speculative-tokens", type=int, metavar="K", help="drafts of theta in a round (4)")
    group.add_argument(
        "--endpoint", metavar="URL", help="ask a running `vllm serve` with the plugin instead of starting an engine"
    )
    group.add_argument("--ray", type=int, metavar="N", help="N engines on a Ray cluster (RAY_ADDRESS), or here")


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="JSONL, JSON, CSV, TSV or parquet files, folders of them, or a Hugging Face data set on disk or by name",
    )
    group.add_argument("--split", help="of a Hugging Face data set")
    group.add_argument("--config-name", metavar="NAME", help="configuration of a data set of the hub")
    group.add_argument("--id-column", metavar="COLUMN", help="the rows' ids; default: file and line")
    group.add_argument("--shard", metavar="I/N", help="only rows I, I+N, I+2N, ... of the input, from 0")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N rows of the input")


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts (Jinja2 over a row's columns, as text or as a file)")
    group.add_argument("--theta-template", metavar="JINJA")
    group.add_argument("--teacher-template", metavar="JINJA", help="default: theta's")
    group.add_argument(
        "--privileged",
        nargs="*",
        action="extend",
        metavar="COLUMN",
        help="columns that theta must not see; default: those that only the teacher's template names. With no names: "
        "none, and theta may see all that the teacher does",
    )
    group.add_argument("--privileged-template", metavar="JINJA", help="how the output's privileged_context is written")
    group.add_argument("--chat", action="store_true", help="make chat messages; default: raw text")
    group.add_argument("--chat-column", metavar="COLUMN", help="a column of chat messages that ends with a user's")
    group.add_argument("--teacher-system-prompt", metavar="TEXT")
    group.add_argument("--theta-system-prompt", metavar="TEXT")
    group.add_argument(
        "--teacher-chat-template-kwargs",
        type=json_object,
        metavar="JSON",
        help="""with --chat: what the teacher's chat template reads beside the messages, such as '{"enable_thinking": true}'""",
    )
    group.add_argument(
        "--theta-chat-template-kwargs", type=json_object, metavar="JSON", help="the same for theta's chat template"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--num-samples", type=int, metavar="N", help="samples of each row (1)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="default: what the prompts leave")
    group.add_argument("--temperature", type=float, metavar="T", help="of q* (1)")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--stop", nargs="+", action="extend", metavar="TEXT", help="texts that end a completion")
    group.add_argument(
        "--seed", type=int, metavar="S", help="each sample gets a seed of its own, made of it and its id"
    )
    group.add_argument("--sampling", type=json_object, metavar="JSON", help="further fields of vLLM's SamplingParams")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("selection: several candidates of a sample, one of them kept")
    group.add_argument("--best-of", type=int, metavar="N", help="draw N candidates of each sample and keep one")
    group.add_argument(
        "--select",
        metavar="HOW",
        help=f"one of {', '.join(SELECTIONS)}: the largest sum of log Z (default), one at random with weights exp(sum of log "
        "Z), the likeliest under the teacher, the first",
    )
    group.add_argument(
        "--select-by",
        metavar="HOW",
        help=f"{' or '.join(AGGREGATES)} over the tokens, for log_z and teacher_logprob (sum)",
    )


def _add_alpha(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("alpha, the weight of the teacher")
    group.add_argument("--alpha-method", metavar="NAME", help=f"one of {', '.join(ALPHA_METHODS)}; default: the first")
    group.add_argument("--alpha", **pair("A"), help="for fixed and arithmetic; two values: from start to end")
    group.add_argument("--alpha-min", **pair("A"))
    group.add_argument("--alpha-max", **pair("A"))
    group.add_argument(
        "--kl-budget", **pair("NATS"), help="for kl_budget: how far q* may be from theta at a token, such as 0.05"
    )
    group.add_argument("--js-sensitivity", type=float, metavar="S", help="for js_gate, per nat (50)")
    group.add_argument(
        "--alpha-steps", type=int, metavar="N", help="over how many tokens two values go from start to end"
    )
    group.add_argument("--support-top-k", type=int, metavar="K")
    group.add_argument("--support-top-p", type=float, metavar="P")
    group.add_argument("--teacher-only-tokens", type=int, metavar="N")
    group.add_argument("--max-js-divergence", type=float, metavar="NATS")
    group.add_argument("--return-alpha", action="store_true", help="write each token's alpha and log-probabilities")
    group.add_argument("--return-top-k", type=int, metavar="K", help="and of each row's K likeliest tokens under q*")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output", metavar="PATH", help="resumed where it has rows already")
    group.add_argument("--format", choices=["jsonl", "parquet", "hf"], help="default: by the output's name")
    group.add_argument("--messages", action="store_true", help="also write each conversation whole, as messages")
    group.add_argument("--retry-errors", action="store_true", help="draw rows again that failed before")
    group.add_argument("--dry-run", type=int, nargs="?", const=3, metavar="N", help="show N rows' prompts and stop (3)")
    group.add_argument("--max-in-flight", type=int, metavar="N", help="samples given to the engine at a time")
    group.add_argument("--verbose", action="store_true", help="show the messages of vLLM too, not only its warnings")
    group.add_argument("--log-interval", type=float, metavar="SECONDS", help="between lines of progress in a log (10)")
