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


LISTS = (*wire.RECORD_FIELDS, *wire.TOP_FIELDS)
"""The fields that have an entry for each token."""

UNKNOWN: dict[str, Any] = {name: False if name == "fallback" else math.nan for name in wire.RECORD_FIELDS}
"""The entries of a token that has no record."""


@dataclass
class TokenRecords:
    """What optimal sampling did at each token: lists with one entry per token of the output they stand on.

    It is `output.outputs[i].optimal_sampling` of a request that set `return_alpha`, aligned with `token_ids`: of all
    tokens so far, or of the new ones where vLLM streams deltas. None without `return_alpha`; in a session that streams its
    input and asks only now and then, tokens that were not asked for have nan. Log-probabilities and divergences are natural
    logarithms at temperature 1, before penalties, temperature and top-k/top-p.

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
    top_token_ids: list[list[int]] = field(default_factory=list)
    """With `return_top_k`, else empty, as the following: the k likeliest tokens of the row under q*, the likeliest first."""
    top_logprob: list[list[float]] = field(default_factory=list)
    """log q* of each; -inf behind the last one that can be drawn."""
    top_teacher_logprob: list[list[float]] = field(default_factory=list)
    """Their log-probabilities under the teacher alone."""
    top_theta_logprob: list[list[float]] = field(default_factory=list)
    """Under theta alone."""
    theta_version: int = 0
    """Of all tokens: how often theta's weights had been replaced (`weights.update_theta`)."""

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, tokens: slice) -> TokenRecords:
        lists: dict[str, Any] = {name: getattr(self, name)[tokens] for name in LISTS}
        for name in wire.TOP_FIELDS:
            if not any(lists[name]):  # of a part of a session that did not ask for them
                lists[name] = []
        return replace(self, **lists)

    def extend(self, other: TokenRecords) -> None:
        """Append the records of further tokens; where only some have the likeliest tokens, the others have none of them."""
        num_tokens, num_further = len(self), len(other)
        for name in wire.RECORD_FIELDS:
            getattr(self, name).extend(getattr(other, name))
        for name in wire.TOP_FIELDS:
            top, further = getattr(self, name), getattr(other, name)
            if top or further:
                top.extend([] for _ in range(num_tokens - len(top)))
                top.extend(further or ([] for _ in range(num_further)))

    def fill(self, num_tokens: int) -> None:
        """Have entries for so many tokens at least, `UNKNOWN` ones at the end."""
        missing = max(num_tokens - len(self), 0)
        lists: dict[str, Any] = {name: [value] * missing for name, value in UNKNOWN.items()}
        self.extend(TokenRecords(**lists))

    def truncate(self, num_tokens: int) -> None:
        """Forget what is behind the first `num_tokens`."""
        for name in LISTS:
            del getattr(self, name)[num_tokens:]

    @classmethod
    def from_rows(cls, rows: np.ndarray) -> TokenRecords:
        """The records of rows as they travel (`wire.StepRecords`)."""
        record, top = np.split(rows, [len(wire.RECORD_FIELDS)], axis=1)
        lists: dict[str, Any] = {
            name: column.tolist() for name, column in zip(wire.RECORD_FIELDS, record.T, strict=True)
        }
        lists["fallback"] = [value != 0 for value in lists["fallback"]]
        if top.shape[1]:
            for name, columns in zip(wire.TOP_FIELDS, np.split(top, len(wire.TOP_FIELDS), axis=1), strict=True):
                lists[name] = (columns.astype(int) if name == "top_token_ids" else columns).tolist()
        return cls(**lists)

    def to_json(self) -> dict[str, list[Any]]:
        """The lists as JSON knows them: a number that is not finite becomes null. Without `return_top_k` its lists are left
        out."""
        return {
            name: _json_numbers(getattr(self, name))
            for name in LISTS
            if name in wire.RECORD_FIELDS or getattr(self, name)
        }


def _json_numbers(values: list[Any]) -> list[Any]:
    return [
        _json_numbers(value) if isinstance(value, list) else value if math.isfinite(value) else None for value in values
    ]


def collect_records(outputs: list[Any], states: dict[str, Any], theta_version: int = 0) -> None:
    """Take the records that came with outputs, into the front end's state of each request (`token_records`).

    Args:
        outputs: `EngineCoreOutput`s of a step.
        states: by request id.
        theta_version: of theta's weights, which do not change while requests run.
    """
    for output in outputs:
        rows = wire.take_records(output)
        state = states.get(output.request_id)
        if rows is None or state is None:  # without records, or aborted in the meantime
            continue
        if getattr(state, "token_records", None) is None:
            state.token_records = TokenRecords(theta_version=theta_version)
        state.token_records.fill(state.detokenizer.num_output_tokens())  # of a session that asks only now
        state.token_records.extend(TokenRecords.from_rows(rows))


def records_of(state: Any, num_tokens: int, num_returned: int) -> TokenRecords | None:
    """The records of the last `num_returned` of `num_tokens` tokens of a request; the rest was behind a stop string."""
    records: TokenRecords | None = getattr(state, "token_records", None)
    if records is None:
        return None
    records.truncate(num_tokens)
    records.fill(num_tokens)  # a session that no longer asks
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
            earlier.optimal_sampling = TokenRecords(theta_version=records.theta_version)
            earlier.optimal_sampling.fill(len(earlier.token_ids))
        earlier.optimal_sampling.extend(records)
