"""What is still to be drawn, and the rows that the output gets of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_optimal_sampling.data.generate.errors import RowError, SettingsError
from vllm_optimal_sampling.data.generate.input_row import InputRow
from vllm_optimal_sampling.data.generate.output import FinishedSamples
from vllm_optimal_sampling.data.generate.output_row import input_columns, input_digest
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.generate.templates import Prompt, Prompts

LONGEST_IN_ERROR = 2000
"""Characters of a text in the row of a failure."""


@dataclass(frozen=True)
class Sample:
    """One completion."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    record: Mapping[str, list[Any]] | None = None
    """The per-token record, as `TokenRecords.to_json` gives it."""
    candidates: list[dict[str, Any]] | None = None
    """Of the one that was kept: the scores of all that were drawn."""


@dataclass
class Job:
    """A row of the input that lacks samples, or that is an error."""

    custom_id: str
    row: InputRow
    prompts: Prompts | None
    samples: list[int]
    error: str | None = None
    """Why the row cannot be sampled at all."""

    def error_row(self, error: str, sample: int | None = None) -> dict[str, Any]:
        """The output's row for a failure: of one sample, or (None) of the whole row. Long texts are cut in it."""
        row = self._row(sample, None, None, f"{self.row.place}: {error}")
        return {name: value if name == "custom_id" else _cut(value) for name, value in row.items()}

    def sample_row(self, index: int, sample: Sample, theta_ids: list[int] | None, messages: bool) -> dict[str, Any]:
        """The output's row for a sample.

        Args:
            index: the sample's number.
            sample: what was drawn.
            theta_ids: theta's prompt as tokens, None where they are not known.
            messages: also give the conversation in one.

        """
        return self._row(index, sample, theta_ids, None, messages)

    def _row(
        self,
        index: int | None,
        sample: Sample | None,
        theta_ids: list[int] | None,
        error: str | None,
        messages: bool = False,
    ) -> dict[str, Any]:
        prompt: Prompt | None = None if self.prompts is None else self.prompts.theta
        completion: Prompt | None = None if sample is None else sample.text
        if sample is not None and isinstance(prompt, list):
            completion = [{"role": "assistant", "content": sample.text}]
        row: dict[str, Any] = {
            "custom_id": self.custom_id,
            "sample": index,
            "prompt": prompt,
            "privileged_context": None if self.prompts is None else self.prompts.privileged_context,
            "completion": completion,
            "finish_reason": None if sample is None else sample.finish_reason,
            "prompt_token_ids": theta_ids,
            "completion_token_ids": None if sample is None else sample.token_ids,
        }
        if messages and isinstance(prompt, list) and isinstance(completion, list):
            row["messages"] = prompt + completion
        if sample is not None and sample.record is not None:
            row["optimal_sampling"] = {name: _short(values) for name, values in sample.record.items()}
        if sample is not None and sample.candidates is not None:
            row["candidates"] = [dict(zip(one, _short(list(one.values())), strict=True)) for one in sample.candidates]
        row["error"] = error
        return row | input_columns(self.row.columns or {})


def _cut(value: Any) -> Any:
    """A value with its long texts cut: one reason that a row fails for is that its prompt is 10 MB long."""
    if isinstance(value, str) and len(value) > LONGEST_IN_ERROR:
        return f"{value[:LONGEST_IN_ERROR]}... ({len(value)} characters)"
    if isinstance(value, Mapping):
        return {name: _cut(one) for name, one in value.items()}
    return [_cut(one) for one in value] if isinstance(value, list | tuple) else value


def _short(values: list[Any]) -> list[Any]:
    """Numbers with the nine digits that a float32 has, which halves the file."""
    return [float(f"{value:.9g}") if isinstance(value, float) else value for value in values]


def jobs(
    rows: Iterable[InputRow], settings: Settings, finished: FinishedSamples, skip: Callable[[], object] = lambda: None
) -> Iterator[Job]:
    """What is left of the input, in its order.

    Args:
        rows: the input.
        settings: the run's.
        finished: what the output has.
        skip: called for each row that lacks nothing.

    Raises:
        SettingsError: theta's template renders a privileged column, which only shows now.

    """
    templates = settings.templates()
    for row in rows:
        custom_id, error = _identified(row, settings.id_column, finished)
        samples = finished.missing(custom_id, settings.num_samples)
        if not samples:
            skip()
            continue
        prompts = None
        if error is None:
            assert row.columns is not None
            try:
                prompts = templates.render(row.columns)
            except RowError as refused:
                error = str(refused)
        yield Job(custom_id, row, prompts, samples, error)


def check_unchanged(rows: Iterable[InputRow], settings: Settings, finished: FinishedSamples) -> None:
    """Find out whether the samples of an output are of the rows that the input has now.

    Args:
        rows: the input. It is read until all rows that the output has samples of were there.
        settings: the run's.
        finished: what the output has.

    Raises:
        SettingsError: a row is not the one that was sampled under its id.

    """
    left = finished.num_sampled_rows
    for row in rows:
        if not left:
            return
        custom_id = row.position
        if settings.id_column is not None and row.columns is not None:
            custom_id = str(row.columns.get(settings.id_column))
        earlier = finished.take_digest(custom_id)
        if earlier is None:
            continue
        left -= 1
        if row.columns is None or input_digest(input_columns(row.columns)) != earlier:
            advice = (
                "Rows are known by their place: put the input back as it was, or give another --output, and "
                "--id-column for a column of ids that stay"
            )
            if settings.id_column is not None:
                advice = f"Its {settings.id_column} is the same, its columns are not: give another --output"
            raise SettingsError(
                f"the input has changed: {row.place} is not the row that {settings.rows_path} has samples of as "
                f"{custom_id!r}. {advice}"
            )


def _identified(row: InputRow, id_column: str | None, finished: FinishedSamples) -> tuple[str, str | None]:
    """A row's id, and what is wrong with the row, or None. A row with no id that it can use is known by its place."""
    if row.error is not None:
        return row.position, row.error
    assert row.columns is not None
    if id_column is None:
        return row.position, None
    given = row.columns.get(id_column)
    if given is None or isinstance(given, bool | float | list | dict) or str(given) == "":
        return row.position, f"column {id_column!r} of --id-column has no text or whole number"
    earlier = finished.use(str(given), row.place)
    if earlier is not None:
        return row.position, f"id {str(given)!r} is already that of {earlier}"
    return str(given), None


def seed_of(seed: int | None, custom_id: str, sample: int) -> int | None:
    """The seed of one sample, in [0, 2^63): the same in every run, whichever rows are beside it. None without one."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}\0{custom_id}\0{sample}".encode(errors="replace"), digest_size=8)
    return int.from_bytes(digest.digest()) >> 1
