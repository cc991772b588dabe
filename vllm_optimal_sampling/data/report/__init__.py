"""What is in the output of `optimal-sampling generate`: figures for programs, one HTML page for people.

from vllm_optimal_sampling.data.report import summarise

summary = summarise("rows.jsonl")
summary.mean_alpha, summary.kl.quantiles[0.95]
summary                                     # in a notebook: the report

rows  ->  collect.summarise (one pass, bounded memory)  ->  Summary  ->  page (template, styles, SVG charts)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_optimal_sampling.data.report.collect import summarise
    from vllm_optimal_sampling.data.report.summary import Summary

__all__ = ["Summary", "summarise"]


def __getattr__(name: str) -> Any:  # the command's --help imports this package, and nothing heavy with it
    if name == "summarise":
        from vllm_optimal_sampling.data.report.collect import summarise

        return summarise
    if name == "Summary":
        from vllm_optimal_sampling.data.report.summary import Summary

        return Summary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
