"""What a report says of whole texts, against figures that are computed here from the same rows in another way."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.written_rows import command, row, write
from vllm_optimal_sampling.data.filter.rules import FilterSettings
from vllm_optimal_sampling.data.report import sequences, summarise
from vllm_optimal_sampling.data.report.sequences import way_in_words
from vllm_optimal_sampling.data.rows import settings_path

ANSWERS = FilterSettings(answer_regex=r"answer is (\d+)", answer_column="answer")


def scored(number: int, log_z: float, said: int = 42, **columns: Any) -> dict[str, Any]:
    one = row(number, f"So the answer is {said}.", answer="42", **columns)
    size = len(one["completion_token_ids"])
    one["optimal_sampling"]["log_z"] = [log_z / size] * size
    return one


def rows_of(prompts: int, texts: int, seed: int = 0) -> list[dict[str, Any]]:
    noise = random.Random(seed)
    rows = []
    for prompt, text in itertools.product(range(prompts), range(texts)):
        is_right = noise.random() < 0.7
        cost = noise.expovariate(2 if is_right else 0.4)
        rows.append(scored(len(rows), -cost, 42 if is_right else 41, custom_id=f"p{prompt}", sample=text))
    return rows


def total(one: dict[str, Any]) -> float:
    return sum(one["optimal_sampling"]["log_z"])


def test_log_z_of_right_and_of_wrong_texts(tmp_path: Path) -> None:
    rows = rows_of(60, 3)
    found = summarise(write(tmp_path / "rows.jsonl", rows), answers=ANSWERS).sequences
    costs = {True: [], False: []}  # type: dict[bool, list[float]]
    for one in rows:
        costs["42" in one["completion"]].append(-total(one))
    assert found.right is not None
    assert found.wrong is not None
    assert (found.cost.count, found.right.count, found.wrong.count) == (180, len(costs[True]), len(costs[False]))
    assert found.cost.mean == pytest.approx(np.mean(costs[True] + costs[False]))
    assert found.right.quantiles[0.5] == pytest.approx(np.median(costs[True]), rel=0.1)
    pairs = [(a < b) + (a == b) / 2 for a in costs[True] for b in costs[False]]
    assert found.likelier == pytest.approx(np.mean(pairs), abs=0.01)
    (way,) = found.ways
    assert (way.num_samples, way.num_judged, way.num_right) == (180, 180, len(costs[True]))
    assert way.kl == pytest.approx(np.mean([kl for one in rows for kl in one["optimal_sampling"]["kl"]]))
    low, high = way.interval
    assert low < way.share < high
    # Wilson: the ends are the shares p with |share - p| = z sqrt(p (1 - p) / n).
    for end in way.interval:
        assert abs(way.share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 180))


def effective(log_weights: list[float]) -> float:
    weights = np.exp(np.array(log_weights))
    return float(weights.sum() ** 2 / np.square(weights).sum())


def test_the_effective_sample_size_of_each_prompt(tmp_path: Path) -> None:
    rows = rows_of(40, 5, seed=1)
    shuffled = random.Random(2).sample(rows, len(rows))  # as finished, not as asked for
    found = summarise(write(tmp_path / "rows.jsonl", [*shuffled, scored(999, -1.0, custom_id="alone")])).sequences
    sizes = [effective([total(one) for one in rows if one["custom_id"] == f"p{p}"]) for p in range(40)]
    assert found.effective_share.count == 40, "and none of the prompt with one text"
    assert found.num_texts == 5
    assert found.effective_share.mean == pytest.approx(np.mean(sizes) / 5)
    assert (found.right, found.wrong) == (None, None)
    assert math.isnan(found.likelier)


def test_weights_far_from_one_another_do_not_overflow(tmp_path: Path) -> None:
    rows = [scored(n, cost, custom_id="p", sample=n) for n, cost in enumerate((-9000.0, -1.0, -8000.0, -1.0))]
    found = summarise(write(tmp_path / "rows.jsonl", rows)).sequences
    assert found.effective_share.mean == pytest.approx(2 / 4)


def test_candidates_of_a_row_are_the_texts_of_its_prompt(tmp_path: Path) -> None:
    weights = [-3.0, -0.2, -0.9]
    names = ("teacher_logprob", "num_tokens", "finish_reason")
    candidates = [
        {"log_z": weight, **dict(zip(names, (-1.0, 5, "stop"), strict=True)), "kept": weight == -0.2}
        for weight in weights
    ]
    rows = [scored(n, -0.2, custom_id="p", sample=n, candidates=candidates) for n in range(2)]
    del rows[1]["optimal_sampling"]  # drawn without --return-alpha: the kept candidate's score stands for the row's
    found = summarise(write(tmp_path / "rows.jsonl", rows)).sequences
    assert (found.effective_share.count, found.num_texts) == (2, 3)
    assert found.effective_share.mean == pytest.approx(effective(weights) / 3)
    assert found.cost.count == 2
    assert found.cost.mean == pytest.approx(0.2)


def test_each_way_of_sampling_is_a_point(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    for number, (name, settings) in enumerate(
        {
            "a": {"alpha_method": "kl_symmetry"},
            "b": {"alpha_method": "fixed", "alpha": 0.3},
            "c": {"alpha_method": "fixed", "alpha": 0.3},
            "d": {"alpha_method": "entropy", "best_of": 4, "select": "log_z", "select_by": "sum"},
        }.items()
    ):
        path = write(folder / f"{name}.jsonl", rows_of(20, 1, seed=number))
        settings_path(path).write_text(json.dumps(settings))
    write(folder / "e.jsonl", rows_of(5, 1, seed=9))
    summary = summarise(folder, answers=ANSWERS)
    assert {way.name: way.num_samples for way in summary.sequences.ways} == {
        "kl_symmetry": 20,
        "fixed 0.3": 40,
        "entropy, best of 4 by log_z": 20,
        "settings not known": 5,
    }
    assert summary.num_repeated == 20, "of the two files that were drawn in the same way"
    out = tmp_path / "report.html"
    options = ["--answer-regex", r"answer is (\d+)", "--answer-column", "answer"]
    assert command("report", folder, "--output", out, *options) == 0
    page = out.read_text()
    assert page.count('class="point"') == 2 * 4, "wide and narrow"
    assert page.count('class="outline') == 2
    for way in summary.sequences.ways:
        assert f"{100 * way.share:.1f} %" in page
        assert way.name in page


def test_points_and_labels_stay_on_the_picture(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    for number in range(10):  # the same share and the same KL: labels stand below one another
        path = write(folder / f"{number}.jsonl", [scored(n, -1.0, custom_id=f"p{n}") for n in range(10)])
        settings_path(path).write_text(json.dumps({"alpha_method": "fixed", "alpha": number / 10}))
    page = summarise(folder, answers=ANSWERS).to_html()
    for box, picture in re.findall(r'viewBox="0 0 (\d+ \d+)"[^>]*aria-label="Share of right(.*?)</svg>', page, re.S):
        width, height = map(int, box.split())
        for x, y in re.findall(r'c?x="([\d.]+)" c?y="([\d.]+)"', picture):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
        labels = [float(y) for y in re.findall(r'class="note" x="[\d.]+" y="([\d.]+)"', picture)]
        assert len(labels) == 10
        assert min(b - a for a, b in itertools.pairwise(sorted(labels))) >= 15


def test_rows_of_before_log_z_have_no_such_section(tmp_path: Path) -> None:
    one = row(1)
    del one["optimal_sampling"]["log_z"]
    summary = summarise(write(tmp_path / "rows.jsonl", [one]))
    assert summary.num_recorded == 1
    assert summary.sequences.cost.count == 0
    assert "Whole texts" not in summary.to_html()


def test_arithmetic_has_no_log_z(tmp_path: Path) -> None:
    one = scored(1, -1.0)
    one["optimal_sampling"] |= {"log_z": [None] * len(one["completion_token_ids"])}
    assert summarise(write(tmp_path / "rows.jsonl", [one])).sequences.cost.count == 0


def test_prompts_beyond_the_limit_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "MOST_PROMPTS", 3)
    summary = summarise(write(tmp_path / "rows.jsonl", rows_of(6, 2)))
    assert summary.sequences.effective_share.count == 3
    assert not summary.sequences.is_complete
    assert "over 3 prompts, the first of the file" in " ".join(summary.to_html().split())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--boxed"], "give --answer-column"),
        (["--answer-column", "answer"], "--answer-column needs --boxed, --answer-regex or --contains-answer"),
        (["--boxed", "--answer-column", "anwser"], "no row has a column 'anwser', which --answer-column needs"),
        (["--answer-regex", "(", "--answer-column", "answer"], "is not a regular expression"),
    ],
)
def test_answers_that_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    path = write(tmp_path / "rows.jsonl", rows_of(2, 1))
    assert command("report", path, *options) == 1
    assert reason in capsys.readouterr().err


def test_ways_in_words() -> None:
    assert way_in_words({}) == "kl_symmetry"
    assert way_in_words({"alpha_method": "entropy", "alpha": 0.5, "alpha_max": 0.9}) == "entropy, alpha max 0.9"
    assert way_in_words({"alpha_method": "arithmetic", "alpha": 0.25, "temperature": 0.7, "filter": {}}) == (
        "arithmetic 0.25, temperature 0.7, filtered"
    )
    best = {"filter": {"best_of_group": "custom_id", "by": "resample"}}
    assert way_in_words(best) == "kl_symmetry, the best of a custom_id by resample"
    assert way_in_words({"best_of": 8, "select": "teacher_logprob", "select_by": "mean"}) == (
        "kl_symmetry, best of 8 by teacher_logprob mean"
    )
