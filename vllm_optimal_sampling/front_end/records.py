"""The per-token record of a request that set `return_alpha`, as its user gets it.

recorder (worker, device)  ->  scheduler: trimmed to the tokens kept  ->  here: `TokenRecords` on the completion, and
over HTTP in the choice (see `responses`). `wire` has what travels in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vllm_optimal_sampling import wire

JSON_FIELD = "optimal_sampling"
"""What the records are called in a choice of a response, and in a row that `generate` writes."""


@dataclass
class TokenRecords:
    """What optimal sampling did at each token: lists with one entry per token of the output they stand on.

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
    log_z: list[float] = field(default_factory=list)
    """log Z, the log of the mixture's normaliser: at most 0, and -`kl` under KL symmetry where alpha is inside its bounds.
    nan where there is none: `arithmetic`, and tokens of the teacher alone. The sum over an output is its log-weight under
    the product of the two models' distributions over whole texts (see `selection`)."""
    logprob: list[float] = field(default_factory=list)
    """log q* of the token."""
    teacher_logprob: list[float] = field(default_factory=list)
    """Its log-probability under the teacher alone."""
    theta_logprob: list[float] = field(default_factory=list)
    """Its log-probability under theta alone; -inf for a token that theta cannot draw."""
    fallback: list[bool] = field(default_factory=list)
    """Whether the row was to be mixed but was left to the teacher."""
    theta_version: int = 0
    """Of all tokens: how often theta's weights had been replaced (`weights.update_theta`)."""

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, tokens: slice) -> TokenRecords:
        lists: dict[str, Any] = {name: getattr(self, name)[tokens] for name in wire.RECORD_FIELDS}
        return replace(self, **lists)

    def extend(self, other: TokenRecords) -> None:
        """Append the records of further tokens."""
        for name in wire.RECORD_FIELDS:
            getattr(self, name).extend(getattr(other, name))

    def truncate(self, num_tokens: int) -> None:
        """Forget what is behind the first `num_tokens`."""
        for name in wire.RECORD_FIELDS:
            del getattr(self, name)[num_tokens:]

    @classmethod
    def from_bytes(cls, data: bytes) -> TokenRecords:
        """The records of rows `[tokens, len(wire.RECORD_FIELDS)]` float32."""
        columns = np.frombuffer(data, dtype=np.float32).reshape(-1, len(wire.RECORD_FIELDS)).T
        lists: dict[str, Any] = {
            name: column.tolist() for name, column in zip(wire.RECORD_FIELDS, columns, strict=True)
        }
        lists["fallback"] = [value != 0 for value in lists["fallback"]]
        return cls(**lists)

    def to_json(self) -> dict[str, list[float | None]]:
        """The lists as JSON knows them: a number that is not finite becomes null."""
        return {
            name: [value if math.isfinite(value) else None for value in getattr(self, name)]
            for name in wire.RECORD_FIELDS
        }


def collect_records(outputs: list[Any], states: dict[str, Any], theta_version: int = 0) -> None:
    """Take the records that came with outputs, into the front end's state of each request (`token_records`).

    Args:
        outputs: `EngineCoreOutput`s of a step.
        states: by request id.
        theta_version: of theta's weights, which do not change while requests run.
    """
    for output in outputs:
        data = wire.take_records(output)
        state = states.get(output.request_id)
        if data is None or state is None:  # without records, or aborted in the meantime
            continue
        if getattr(state, "token_records", None) is None:
            state.token_records = TokenRecords(theta_version=theta_version)
        state.token_records.extend(TokenRecords.from_bytes(data))


def records_of(state: Any, num_tokens: int, num_returned: int) -> TokenRecords | None:
    """The records of the last `num_returned` of `num_tokens` tokens of a request; the rest was behind a stop string."""
    records: TokenRecords | None = getattr(state, "token_records", None)
    if records is None:
        return None
    records.truncate(num_tokens)
    return records[num_tokens - num_returned : num_tokens]


def merge_records(completions: list[Any], later: list[Any]) -> None:
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
