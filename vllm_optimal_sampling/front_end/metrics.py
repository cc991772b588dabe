"""Prometheus metrics of optimal sampling, on the server's /metrics and in `LLM.get_metrics()`, beside vLLM's own.

    vllm:optimal_sampling_alpha            histogram: the weight of the teacher in each mixed token
    vllm:optimal_sampling_kl               histogram: D_KL(q* || theta) of each mixed token, in nats
    vllm:optimal_sampling_mixed_tokens     counter: tokens drawn from q*
    vllm:optimal_sampling_plain_tokens     counter: tokens drawn from the teacher alone because so asked (opted out, or
                                           the first `teacher_only_tokens`)
    vllm:optimal_sampling_fallback_tokens  counter: tokens left to the teacher because their rows could not be mixed

Labels are vLLM's, `model_name` and `engine`. As in vLLM's acceptance metrics every token drawn counts, also the few
that a stop or a preemption then drops. The counts are made on the device (`kernels.tally`); to the front end they come
with vLLM's scheduler statistics, in a dictionary that is free in these engines: `kv_connector_stats`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm_optimal_sampling import wire
from vllm_optimal_sampling.wire import ALPHA_EDGES, KL_EDGES


class OptimalSamplingMetrics:
    """The metrics of one front end.

    Args:
        logger: vLLM's Prometheus logger, for its labels and its classes of metrics.
    """

    def __init__(self, logger: Any):
        from vllm.v1.metrics.utils import create_metric_per_engine

        labels = ["model_name", "engine"]

        def per_engine(kind: Any, name: str, documentation: str, **options: Any) -> dict[int, Any]:
            metric = kind(
                name=f"vllm:optimal_sampling_{name}", documentation=documentation, labelnames=labels, **options
            )
            return create_metric_per_engine(metric, logger.per_engine_labelvalues)

        histogram, counter = logger._histogram_cls, logger._counter_cls
        self.alpha = per_engine(
            histogram, "alpha", "Weight of the teacher in each mixed token.", buckets=list(ALPHA_EDGES)
        )
        self.kl = per_engine(histogram, "kl", "D_KL(q* || theta) of each mixed token, in nats.", buckets=list(KL_EDGES))
        self.mixed = per_engine(counter, "mixed_tokens", "Tokens drawn from the mixture of teacher and theta.")
        self.plain = per_engine(counter, "plain_tokens", "Tokens drawn from the teacher alone because so asked.")
        self.fallback = per_engine(
            counter, "fallback_tokens", "Tokens left to the teacher because their rows could not be mixed."
        )

    def record(self, tally: np.ndarray, engine: int) -> None:
        """Add a step's tally, `[TALLY_SIZE]`, of one engine."""
        from vllm_optimal_sampling.kernels.tally import ALPHA, ALPHA_SUM, FALLBACK, KL, KL_SUM, MIXED, PLAIN

        self.mixed[engine].inc(tally[MIXED])
        self.plain[engine].inc(tally[PLAIN])
        self.fallback[engine].inc(tally[FALLBACK])
        if tally[MIXED] == 0:
            return
        _add(self.alpha[engine], tally[ALPHA : ALPHA + len(ALPHA_EDGES)], tally[MIXED], tally[ALPHA_SUM])
        _add(self.kl[engine], tally[KL : KL + len(KL_EDGES)], tally[MIXED], tally[KL_SUM])


def record_tally(stats: Any, loggers: list[Any], engine: int) -> None:
    """Add the tally that came with scheduler statistics to the metrics of the loggers that have any.

    Args:
        stats: vLLM's `SchedulerStats`; the tally is taken out.
        loggers: of the front end.
        engine: the index of the engine that the statistics are from.
    """
    tally = wire.take_tally(stats)
    for logger in loggers:
        metrics = getattr(logger, "theta_metrics", None)
        if tally is not None and metrics is not None:
            metrics.record(tally, engine)


def _add(histogram: Any, cumulative: np.ndarray, total: float, added: float) -> None:
    """Add many observations at once, for which prometheus_client has no public call (Ray's histograms have none)."""
    buckets = getattr(histogram, "_buckets", None)
    if buckets is None:
        return
    counts = np.diff(cumulative, prepend=0.0, append=total)
    for bucket, count in zip(buckets, counts, strict=True):
        if count:
            bucket.inc(float(count))
    histogram._sum.inc(float(added))
