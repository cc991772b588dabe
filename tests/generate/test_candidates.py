"""`--best-of`: which candidate becomes a row, and what the row says of the others."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from test_run import Bench, Scripted

from vllm_optimal_sampling.data.generate.candidates import keep_one
from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.identity import identity_of
from vllm_optimal_sampling.data.generate.jobs import Sample, seed_of
from vllm_optimal_sampling.data.generate.samplers import Prepared
from vllm_optimal_sampling.data.generate.sampling import sampling_params
from vllm_optimal_sampling.data.generate.settings_from import settings_from
from vllm_optimal_sampling.selection import Scores, Selection

GIVEN = {"input": "i", "output": "o.jsonl", "teacher": "t", "theta": "s", "theta_template": "{{ a }}"}


def sample(number: int, log_z: float | None, teacher: float, tokens: int = 4, finish_reason: str = "stop") -> Sample:
    """A completion of `tokens` tokens with these sums."""
    record = {
        "alpha": [0.5] * tokens,
        "log_z": [None if log_z is None else log_z / tokens] * tokens,
        "teacher_logprob": [teacher / tokens] * tokens,
    }
    return Sample(f"text {number}", list(range(tokens)), finish_reason, record)


CANDIDATES = [sample(0, -2.0, -8.0), sample(1, -0.5, -9.0), sample(2, -0.75, -16.0, tokens=8), sample(3, -3.0, -4.0)]


class Several(Scripted):
    """Draws `best_of` candidates at a time."""

    candidates = CANDIDATES

    async def sample(self, prepared: Prepared, request_id: str, seed: int | None) -> list[Sample]:
        await super().sample(prepared, request_id, seed)
        return self.candidates


def bench(folder: Path, prompts: list[str], **changes: Any) -> Bench:
    made = Bench(folder, prompts, best_of=4, **changes)
    made.sampler = Several()
    return made


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, 1), ({"select": "teacher_logprob"}, 3), ({"select": "none"}, 0), ({"select_by": "mean"}, 2)],
)
def test_the_kept_candidate_is_the_row(tmp_path: Path, changes: dict[str, Any], kept: int) -> None:
    made = bench(tmp_path, ["a"], **changes)
    made.go()
    (row,) = made.rows()
    assert row["completion"] == f"text {kept}"
    assert row["completion_token_ids"] == CANDIDATES[kept].token_ids
    assert "optimal_sampling" not in row, "nobody asked for it"
    assert [one["kept"] for one in row["candidates"]] == [number == kept for number in range(4)]
    assert [one["log_z"] for one in row["candidates"]] == pytest.approx([-2.0, -0.5, -0.75, -3.0])
    assert [one["teacher_logprob"] for one in row["candidates"]] == pytest.approx([-8.0, -9.0, -16.0, -4.0])
    assert [(one["num_tokens"], one["finish_reason"]) for one in row["candidates"]] == [
        (len(one.token_ids), "stop") for one in CANDIDATES
    ]
    assert made.progress.tokens == 20, "of all candidates"


def test_the_record_of_the_kept_one_is_there_when_asked_for(tmp_path: Path) -> None:
    made = bench(tmp_path, ["a"], return_alpha=True)
    made.go()
    (row,) = made.rows()
    assert row["optimal_sampling"]["log_z"] == [-0.125] * 4


def test_samples_are_numbered_and_missing_ones_drawn_as_ever(tmp_path: Path) -> None:
    made = bench(tmp_path, ["a", "b"], num_samples=3)
    made.output.finished.add("i:1", 1)
    made.go()
    assert sorted((row["custom_id"], row["sample"]) for row in made.rows()) == [
        ("i:1", 0), ("i:1", 2), ("i:2", 0), ("i:2", 1), ("i:2", 2),
    ]  # fmt: skip


def test_the_window_counts_candidates(tmp_path: Path) -> None:
    made = bench(tmp_path, ["a"] * 20, max_in_flight=8)
    made.go()
    assert made.sampler.most == 2
    made = bench(tmp_path / "narrow", ["a"] * 5, max_in_flight=3)
    made.go()
    assert made.sampler.most == 1


def test_a_refused_row_is_one_error_without_candidates(tmp_path: Path) -> None:
    made = bench(tmp_path, ["refused", "a"])
    made.go()
    failed, good = sorted(made.rows(), key=lambda row: row["custom_id"])
    assert failed["error"] == "i line 1: no room"
    assert "candidates" not in failed
    assert good["error"] is None


def test_candidates_without_a_score_are_an_error_of_the_row(tmp_path: Path) -> None:
    """A server with an earlier version of the plugin returns no log Z."""
    made = bench(tmp_path, ["a"])
    records = [dict(one.record or {}) for one in CANDIDATES]
    for record in records:
        del record["log_z"]
    made.sampler.candidates = [dataclasses.replace(one, record=r) for one, r in zip(CANDIDATES, records, strict=True)]
    made.go()
    (row,) = made.rows()
    assert row["error"].startswith("i line 1: none of the 4 candidates has a score for --select log_z")
    settings = settings_from(GIVEN | {"best_of": 4, "select": "teacher_logprob"})
    assert keep_one(made.sampler.candidates, settings, None).text == "text 3"


def test_resampling_depends_on_the_samples_own_seed_alone() -> None:
    settings = settings_from(GIVEN | {"best_of": 4, "select": "resample", "seed": 3})

    def kept(custom_id: str, number: int) -> str:
        return keep_one(CANDIDATES, settings, seed_of(settings.seed, custom_id, number)).text

    first = [kept(custom_id, number) for custom_id in "abcdefgh" for number in range(4)]
    assert first == [kept(custom_id, number) for custom_id in "abcdefgh" for number in range(4)]
    assert len(set(first)) > 1
    expected = Selection("resample").choose(
        [Scores.of(one.record or {}, "stop") for one in CANDIDATES], random.Random(f"select {seed_of(3, 'a', 0)}")
    )
    assert first[0] == f"text {expected}"


def test_what_is_kept_decides_the_distribution_of_the_rows() -> None:
    def identity(**changes: Any) -> dict[str, Any]:
        return identity_of(settings_from(GIVEN | changes))

    assert identity()["best_of"] is None
    assert identity(best_of=4) == identity(best_of=4, select="log_z", select_by="sum")
    assert len({json.dumps(identity(**one)) for one in (
        {}, {"best_of": 1}, {"best_of": 4}, {"best_of": 4, "select": "resample"}, {"best_of": 4, "select_by": "mean"},
    )}) == 5  # fmt: skip


def test_one_request_draws_all_candidates() -> None:
    assert sampling_params(settings_from(GIVEN | {"best_of": 4})).n == 4
    assert sampling_params(settings_from(GIVEN)).n == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"best_of": 0}, "best_of=0 is less than 1"),
        (
            {"select": "log_z"},
            r"select='log_z' keeps one of several candidates; say of how many with best_of, or drop it",
        ),
        ({"select_by": "mean"}, "select_by='mean' keeps one of several candidates"),
        ({"best_of": 4, "select": "best"}, "select='best' is not one of log_z, resample, teacher_logprob, none"),
        ({"best_of": 4, "alpha_method": "arithmetic"}, "select='log_z' needs log Z, and alpha_method='arithmetic'"),
        ({"best_of": 4, "select": "resample", "select_by": "mean"}, "select_by='mean' has no effect"),
        ({"best_of": 4, "temperature": 0.0}, "best_of=4 candidates are the same text at temperature 0"),
        ({"sampling": {"n": 4}}, "sampling has 'n': give --num-samples for samples of a row, or --best-of"),
        ({"best_of": 2.5}, "best_of=2.5 is not a whole number"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        settings_from(GIVEN | changes)


def test_what_is_taken() -> None:
    for changes in (
        {"best_of": 1, "temperature": 0.0},
        {"best_of": 4, "select": "teacher_logprob", "alpha_method": "arithmetic"},
        {"best_of": 4, "select": "none", "alpha_method": "arithmetic"},
    ):
        assert settings_from(GIVEN | changes).selection is not None
