"""What is in the output of `optimal-sampling generate`: figures for programs, one HTML page for people.

from vllm_optimal_sampling.report import summarise

summary = summarise("rows.jsonl")
summary.mean_alpha, summary.kl.quantiles[0.95]
summary                                     # in a notebook: the report

rows  ->  summarise (one pass, bounded memory)  ->  Summary  ->  page (template, styles, SVG charts)
"""

from vllm_optimal_sampling.report.command import add_parser
from vllm_optimal_sampling.report.summarise import summarise
from vllm_optimal_sampling.report.summary import Summary

__all__ = ["Summary", "add_parser", "summarise"]
