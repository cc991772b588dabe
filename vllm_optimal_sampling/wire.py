"""What crosses from one process of an engine to the next, beyond vLLM's own messages. Nothing else does.

    front end -> engine core -> worker    a request's arguments, in `SamplingParams.extra_args` (see `params`), with theta's
                                          prompt as token ids under `THETA_PROMPT`, and `THETA_VERSION`
    worker -> engine core                 `StepRecords`, an attribute of vLLM's `ModelRunnerOutput`
    engine core -> front end              the records of the tokens that are kept, as bytes, and the step's tally

vLLM's messages have no field of ours, so the last two travel in dictionaries that are free in these engines, which refuse KV
connectors: `kv_transfer_params` of an `EngineCoreOutput`, and `kv_connector_stats` of the scheduler's statistics. Both are
taken out again before vLLM looks at them.

Neither torch nor vLLM is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

THETA_PROMPT = "theta_prompt_token_ids"
"""The key of `extra_args` with theta's prompt once the front end has resolved it; absent where theta reads the teacher's."""

OPTIMAL_SAMPLING = "optimal_sampling"
"""The key of `extra_args` that is False for a request that opted out."""

THETA_VERSION = "optimal_sampling_theta_version"
"""The key of `extra_args` with theta's version, how often its weights were replaced; absent before the first time."""

RECORD_FIELDS = ("alpha", "kl", "log_z", "logprob", "teacher_logprob", "theta_logprob", "fallback")
"""The columns of a token's record, float32 each, in their order on the way."""

TOP_FIELDS = ("top_token_ids", "top_logprob", "top_teacher_logprob", "top_theta_logprob")
"""With `return_top_k` = k behind them, k columns each: float32 too, which has every id below 2^24."""

ALPHA_EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Upper bounds of the histogram of alpha: the worker counts by them, the front end names its buckets after them."""
KL_EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""The same for D_KL(q* || theta), in nats."""

_RECORDS = "optimal_sampling_records"
_TALLY = "optimal_sampling_tally"


@dataclass
class StepRecords:
    """What a worker reports of one step, on the host."""

    rows: dict[str, np.ndarray]
    """By request id, for those that asked: `[K + 1, len(RECORD_FIELDS) + len(TOP_FIELDS) * k]` float32, first the rows of the
    tokens drawn; k is the request's `return_top_k`."""
    tally: np.ndarray
    """`[TALLY_SIZE]` float32, see `kernels.tally`: all requests of the step."""


def attach_records(outputs: Mapping[int, Any], records: StepRecords) -> None:
    """Give each `EngineCoreOutput` of a step the records of the tokens that it brings; drafts that were cut off have none.

    Args:
        outputs: `EngineCoreOutputs` by client, as the scheduler returns them.
        records: of the same step.
    """
    if not records.rows:
        return
    for client_outputs in outputs.values():
        for output in client_outputs.outputs:
            rows = records.rows.get(output.request_id)
            if rows is not None and output.new_token_ids:
                kept = np.ascontiguousarray(rows[: len(output.new_token_ids)]).tobytes()
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), _RECORDS: (rows.shape[1], kept)}


def take_records(output: Any) -> np.ndarray | None:
    """What `attach_records` gave an `EngineCoreOutput`: a row of `StepRecords` for each token. The output is left as vLLM
    made it."""
    params = output.kv_transfer_params
    if not params or _RECORDS not in params:
        return None
    num_columns, data = params.pop(_RECORDS)
    if not params:
        output.kv_transfer_params = None
    return np.frombuffer(data, dtype=np.float32).reshape(-1, num_columns)


def attach_tally(outputs: Mapping[int, Any], records: StepRecords) -> None:
    """Put a step's tally on the scheduler statistics among its `EngineCoreOutputs`; nowhere where none are kept."""
    for output in outputs.values():
        stats = output.scheduler_stats
        if stats is not None:
            stats.kv_connector_stats = {**(stats.kv_connector_stats or {}), _TALLY: records.tally.tolist()}
            return


def take_tally(stats: Any) -> np.ndarray | None:
    """What `attach_tally` put on scheduler statistics, which are left as vLLM made them."""
    if stats is None or not stats.kv_connector_stats or _TALLY not in stats.kv_connector_stats:
        return None
    tally = np.asarray(stats.kv_connector_stats.pop(_TALLY))
    if not stats.kv_connector_stats:
        stats.kv_connector_stats = None
    return tally
