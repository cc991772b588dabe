"""The experiment's stages leave pieces, a second run does nothing again, and README says what the results say."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from distillation import HERE, report
from distillation.forms import FORMS
from distillation.run import Experiment, piece

RESULTS = report.load()


def test_a_piece_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict:
        calls.append(1)
        return {"share": 0.123456789}

    first = piece(tmp_path / "a" / "b.json", compute)
    assert piece(tmp_path / "a" / "b.json", compute) == first
    assert calls == [1]
    assert first["share"] == 0.123457
    assert len(first["commit"].removesuffix("-dirty")) == 40
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_a_piece_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        piece(tmp_path / "b.json", lambda: {"x": 1 / 0})
    assert not list(tmp_path.iterdir())


def test_other_settings_are_refused(tmp_path: Path) -> None:
    form = replace(FORMS["short"], problems=5, validation_problems=5)
    Experiment(form, tmp_path, 1).prepare()
    Experiment(replace(form, seeds=(0, 1), sources=("theta",)), tmp_path, 1).prepare()  # more of the same
    with pytest.raises(ValueError, match="begun with other settings"):
        Experiment(replace(form, problems=6), tmp_path, 1).prepare()


@pytest.mark.full
def test_from_one_command_to_the_result_and_on(tmp_path: Path) -> None:
    """Every stage, with the engine, on 6 problems; then once more with another seed, which redoes nothing."""
    sources = "kl_symmetry,kl_symmetry_right,written"
    command = [
        sys.executable,
        str(HERE / "run.py"),
        "--work",
        str(tmp_path / "work"),
        "--results",
        str(tmp_path),
        "--form",
        "full",
    ]
    command += ["--sources", sources, "--problems", "6", "--steps", "2", "--held-out", "6", "--jobs", "1"]
    subprocess.run([*command, "--seeds", "2"], check=True, capture_output=True, text=True, env=os.environ)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.json")}
    subprocess.run([*command, "--seeds", "3"], check=True, capture_output=True, text=True, env=os.environ)

    pieces = [path for path in made if path.name != "settings.json"]
    assert all(path.stat().st_mtime_ns == made[path] for path in pieces)
    result = json.loads((tmp_path / "full.json").read_text())
    assert set(result["students"]) == set(sources.split(","))
    assert [run["seed"] for run in result["students"]["written"]] == [0, 1, 2]
    assert result["data"]["kl_symmetry"]["rows"] == 6
    assert max(result["data"]["kl_symmetry"]["largest_difference_from_records"].values()) < 1e-3
    assert 0.2 < result["data"]["kl_symmetry"]["alpha"]["mean"] < 0.8
    assert result["data"]["written"]["right"] == 6
    assert [run["seed"] for run in result["second_round"]["students"]["kl_symmetry"]["new"]] == [0, 1, 2]
    for section in report.SECTIONS:
        report.render(result, section)


def test_readme_says_what_the_results_say() -> None:
    text = report.README.read_text()
    assert text == report.written_into(text, RESULTS), "run examples/distillation/report.py --write"
    shown = set(re.findall(r"<!-- ([a-z_0-9-]+): written by report.py -->", text))
    assert shown == {"draws", "short-students", "short-origin", *(f"full-{section}" for section in report.SECTIONS)}


def test_a_changed_result_changes_the_readme() -> None:
    text = report.README.read_text()
    for form in RESULTS:
        changed = copy.deepcopy(RESULTS)
        changed[form]["students"][report.REFERENCE][0]["end"]["stories"]["greedy"]["right"] = 0.0
        assert report.written_into(text, changed) != text


@pytest.mark.parametrize("form", RESULTS)
def test_results_say_where_they_come_from_and_are_whole(form: str) -> None:
    result = RESULTS[form]
    assert len(result["commit"]) == 40, "begun with files that differ from the commit"
    assert result["problems"] == {"stories": 500, "longer": 300, "sorting": 300}
    for name, runs in result["students"].items():
        assert [run["seed"] for run in runs] == result["form"]["seeds"], name
        for run in runs:
            assert run["learning_rate"] == result["learning_rates"][name]
            assert all(0 <= share <= 1 for column in report.COLUMNS for share in report.shares([run], *column))
        assert result["tuning"][name][f"{result['learning_rates'][name]:g}"] == max(result["tuning"][name].values())


def test_the_pictures_are_those_that_the_readme_shows() -> None:
    shown = set(re.findall(r"\]\(results/([^)]*\.png)\)", report.README.read_text()))
    assert (
        shown
        == {path.name for path in report.RESULTS.glob("*.png")}
        == {f"full-{plot}.png" for plot in ("data", "students", "curves", "alpha")}
    )
    assert all((report.RESULTS / name).stat().st_size > 5000 for name in shown)


def test_a_summary_says_what_the_marks_say() -> None:
    """Shares and differences of a result with marks, computed here once more from them."""
    rng = random.Random(0)

    def run(seed: int) -> dict:
        def one() -> dict:
            return {what: "".join(rng.choice("01") for _ in range(40)) for what in ("right", "sound")}

        return {"seed": seed, "end": {name: {way: one() for way in report.WAYS} for name in report.SETS}}

    students = {name: [run(seed) for seed in range(3)] for name in (report.REFERENCE, "teacher")}
    result = {"students": students, "before": [run(seed) for seed in range(3)]}
    found = report.summarised(result)
    assert found["problems"] == dict.fromkeys(report.SETS, 40)
    for number, (held_out, way) in enumerate(report.COLUMNS):
        marks = {name: [one["end"][held_out][way]["right"] for one in runs] for name, runs in students.items()}
        shares = {name: [string.count("1") / 40 for string in strings] for name, strings in marks.items()}
        for name, expected in shares.items():
            assert report.shares(found["students"][name], held_out, way) == expected
        middle, low, high = found["differences"]["teacher"][number]
        assert middle == pytest.approx((sum(shares[report.REFERENCE]) - sum(shares["teacher"])) / 3)
        assert low < middle < high
    assert "01" not in json.dumps(found["students"])


@pytest.mark.parametrize("form", RESULTS)
def test_the_plots_are_drawn_from_the_results(form: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plots need the extra `bench`")
    from distillation.plots import draw

    draw(RESULTS[form], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{form}-{plot}.png" for plot in ("data", "students", "curves", "alpha")
    }
