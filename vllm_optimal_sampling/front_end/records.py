"""The per-token record of a request that set `return_alpha`, and its way from the worker to the user's output.

    recorder (worker, device)  ->  StepRecords on the model runner's output  ->  scheduler: trimmed to the tokens kept
    ->  EngineCoreOutput  ->  front end: TokenRecords on the completion, over HTTP in the choice (see `responses`)

vLLM's messages have no field of ours, so the rows travel as bytes in a dictionary that is free in these engines, which
refuse KV connectors: `kv_transfer_params` of an `EngineCoreOutput`. It is taken out again before vLLM looks at it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

FIELDS = ("alpha", "kl", "logprob", "teacher_logprob", "theta_logprob", "fallback")
"""The columns of a row, float32 each. `TokenRecords` has one list for each."""
KEY = "optimal_sampling"


@dataclass
class TokenRecords:
    """What optimal sampling did at each token: six lists with one entry per token of the output they stand on.

    It is `output.outputs[i].optimal_sampling` of a request that set `return_alpha`, aligned with `token_ids`: of all
    tokens so far, or of the new ones where vLLM streams deltas. None without `return_alpha`. Log-probabilities and
    divergences are natural logarithms at temperature 1, before penalties, temperature and top-k/top-p.

        params = SamplingParams(extra_args=OptimalSamplingParams(theta_prompt="...", return_alpha=True).to_extra_args())
        (output,) = llm.generate(["..."], params)
        completion = output.outputs[0]
        for token, alpha in zip(completion.token_ids, completion.optimal_sampling.alpha):
            ...
    """

    alpha: list[float] = field(default_factory=list)
    """The weight of the teacher, in [0, 1]; 1 where the teacher drew alone."""
    kl: list[float] = field(default_factory=list)
    """D_KL(q* || theta) in nats; equal to D_KL(q* || teacher) where alpha is inside its bounds. inf or nan
    where the row could not be mixed."""
    logprob: list[float] = field(default_factory=list)
    """log q* of the token."""
    teacher_logprob: list[float] = field(default_factory=list)
    """Its log-probability under the teacher alone."""
    theta_logprob: list[float] = field(default_factory=list)
    """Its log-probability under theta alone; -inf for a token that theta cannot draw."""
    fallback: list[bool] = field(default_factory=list)
    """Whether the row was to be mixed but was left to the teacher."""

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, tokens: slice) -> TokenRecords:
        return TokenRecords(*(getattr(self, name)[tokens] for name in FIELDS))

    def extend(self, other: TokenRecords) -> None:
        """Append the records of further tokens."""
        for name in FIELDS:
            getattr(self, name).extend(getattr(other, name))

    def truncate(self, num_tokens: int) -> None:
        """Forget what is behind the first `num_tokens`."""
        for name in FIELDS:
            del getattr(self, name)[num_tokens:]

    @classmethod
    def from_bytes(cls, data: bytes) -> TokenRecords:
        """The records of rows `[tokens, len(FIELDS)]` float32."""
        columns = np.frombuffer(data, dtype=np.float32).reshape(-1, len(FIELDS)).T
        lists: dict[str, list] = {name: column.tolist() for name, column in zip(FIELDS, columns, strict=True)}
        lists["fallback"] = [value != 0 for value in lists["fallback"]]
        return cls(**lists)

    def to_json(self) -> dict[str, list[float | None]]:
        """The six lists as JSON knows them: a number that is not finite becomes null."""
        return {
            name: [value if math.isfinite(value) else None for value in values] for name, values in asdict(self).items()
        }


@dataclass
class StepRecords:
    """What a worker reports of one step, on the host. Travels as an attribute of vLLM's `ModelRunnerOutput`."""

    rows: dict[str, np.ndarray]
    """By request id, for those that asked: `[K + 1, len(FIELDS)]` float32, first the rows of the tokens drawn."""
    tally: np.ndarray
    """`[TALLY_SIZE]` float32, see `kernels.tally`: all requests of the step."""


def attach_rows(outputs: list[Any], step: StepRecords) -> None:
    """Give each `EngineCoreOutput` the rows of the tokens that it brings; drafts that were cut off have none."""
    for output in outputs:
        rows = step.rows.get(output.request_id)
        if rows is not None and output.new_token_ids:
            kept = np.ascontiguousarray(rows[: len(output.new_token_ids)]).tobytes()
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: kept}


def collect_rows(outputs: list[Any], states: dict[str, Any]) -> None:
    """Take what `attach_rows` gave, into the front end's state of each request (`token_records`)."""
    for output in outputs:
        params = output.kv_transfer_params
        if not params or KEY not in params:
            continue
        data = params.pop(KEY)
        if not params:
            output.kv_transfer_params = None
        state = states.get(output.request_id)
        if state is not None:  # else aborted in the meantime
            if getattr(state, "token_records", None) is None:
                state.token_records = TokenRecords()
            state.token_records.extend(TokenRecords.from_bytes(data))


def records_of(state: Any, num_tokens: int, num_returned: int) -> TokenRecords | None:
    """The records of the last `num_returned` of `num_tokens` tokens of a request; the rest was behind a stop string."""
    records: TokenRecords | None = getattr(state, "token_records", None)
    if records is None:
        return None
    records.truncate(num_tokens)
    return records[num_tokens - num_returned : num_tokens]


def merge(completions: list[Any], later: list[Any]) -> None:
    """Append the records of deltas to those of the completions that they are merged into, by index."""
    by_index = {completion.index: completion for completion in completions}
    for delta in later:
        records = getattr(delta, "optimal_sampling", None)
        earlier = by_index.get(delta.index)
        if records is None or earlier is None or earlier is delta:
            continue
        if getattr(earlier, "optimal_sampling", None) is None:
            earlier.optimal_sampling = records
        else:
            earlier.optimal_sampling.extend(records)
