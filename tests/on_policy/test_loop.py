"""The example of a loop: an interrupted run goes on, rows drawn once are drawn once, the page says what the result says."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="the extra `trl` is not installed")

import distillation  # noqa: F401  it finds the modules that follow
import measure
import task
from distillation.problems import numbers_of
from on_policy import HERE, loop, report, run
from on_policy.held_out import FILES, WAYS, difference, problems
from on_policy.report import COLUMNS
from transformers import AutoTokenizer

RECIPE = replace(run.SMALL, held_out=4)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rounds' completions are drawn first, with the first theta; the break comes while round two is judged."""
    folder = tmp_path / "once-0"
    evaluate = loop.Evaluation.evaluate

    def breaking_off(self: loop.Evaluation, number: int, model: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        evaluate(self, number, model)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Evaluation, "evaluate", breaking_off)
        with pytest.raises(KeyboardInterrupt):
            loop.run("once", 0, RECIPE, folder)
    kept = {
        path: path.stat().st_mtime_ns for path in folder.rglob("*.json") if path.parent.name in ("rows", folder.name)
    }
    assert {path.name for path in kept} == {"0.json", "1.json", "evaluation-0.json", "evaluation-1.json"}

    found = loop.run("once", 0, RECIPE, folder)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert found["resumed_at_round"] == 1
    assert [one["tokens"] > 0 for one in found["rounds"]] == [True, True]
    assert set(found["evaluations"]) == {"0", "1", "2"}
    assert set(found["evaluations"]["2"]) >= set(FILES)
    # What was trained on is what was drawn for the problems, in their order.
    problems, tokenizer = loop.problems_of(RECIPE, 0), AutoTokenizer.from_pretrained(loop.PAIR / "theta")
    rows = [row for number in range(2) for row in json.loads((folder / "rows" / f"{number}.json").read_text())["rows"]]
    assert [row["prompt"] for row in rows] == [
        measure.render(tokenizer, task.theta_messages(problem["problem"])) for problem in problems
    ]
    right = [
        task.is_right(tokenizer.decode(row["completion"], skip_special_tokens=True), problem["answer"])
        for row, problem in zip(rows, problems, strict=True)
    ]
    assert [one["right"] for one in found["rounds"]] == [sum(right[:4]) / 4, sum(right[4:]) / 4]
    assert all(len(row["logprobs"]) == len(row["completion"]) for row in rows)


@pytest.mark.full
def test_the_command(tmp_path: Path) -> None:
    """All sources and seeds on a few problems, and once more, which does nothing again."""
    pytest.importorskip("matplotlib", reason="the plot needs the extra `bench`")
    command = [sys.executable, str(HERE / "run.py"), "--small", "--work", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-?.json")}
    assert len(made) == len(loop.SOURCES) * len(run.SMALL_SEEDS)
    subprocess.run(command, check=True, capture_output=True, env=os.environ)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    result = report.load(tmp_path)
    for name, runs in result["runs"].items():
        assert [one["seed"] for one in runs] == list(run.SMALL_SEEDS)
        # The engine's theta is new in each round; where all is drawn first, it stays the first.
        assert [one["theta_version"] for one in runs] == [1 if name == "once" else RECIPE.rounds] * 2
    assert (tmp_path / report.PLOT).stat().st_size > 5000
    assert all(section(result) for section in report.SECTIONS.values())


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(RECIPE)))
    with pytest.raises(ValueError, match="was begun with another recipe"):
        run.all_runs(tmp_path, replace(RECIPE, rounds=3), (0,), 1)


def test_training_problems_are_apart() -> None:
    """From those held out by their numbers, and from seed to seed by their texts."""
    drawn = [loop.problems_of(loop.Recipe(), seed) for seed in run.SEEDS]
    texts = [{row["problem"] for row in rows} for rows in drawn]
    assert all(len(one) == loop.Recipe().rounds * loop.Recipe().problems for one in texts)
    assert not texts[0] & texts[1]
    held_out = {numbers_of(row) for rows in problems().values() for row in rows}
    assert not held_out & {numbers_of(row) for rows in drawn for row in rows}


def test_the_difference_on_the_same_problems() -> None:
    ours, theirs = ["1" * 60 + "0" * 40], ["1" * 40 + "0" * 60]
    middle, low, high = difference(ours, theirs)
    assert middle == pytest.approx(0.2)
    # One run a side leaves the problems alone: 20 of 100 differ, all one way.
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.2 * 0.8 / 100), rel=0.1)
    assert difference(ours, ours) == (0, 0, 0)
    with pytest.raises(ValueError, match="have to be the same"):
        difference(["10"], ["100"])


def test_the_difference_widens_with_the_spread_of_runs() -> None:
    even, uneven = ["10" * 100] * 4, ["11" * 100, "00" * 100, "11" * 100, "00" * 100]
    assert difference(even, even)[1:] == pytest.approx((0, 0), abs=1e-12)
    _, low, high = difference(uneven, even)
    assert low < -0.2 < 0.2 < high


def made_up(seeds: int = 2) -> dict[str, Any]:
    """A result with marks at random."""
    rng = random.Random(0)

    def judged(names: list[str]) -> dict[str, Any]:
        return {
            name: {
                way: {what: "".join(rng.choice("01") for _ in range(30)) for what in ("right", "sound")} for way in WAYS
            }
            for name in names
        }

    def one(seed: int) -> dict[str, Any]:
        evaluations = {"0": judged(list(FILES)), "1": judged(["stories"]), "2": judged(list(FILES))}
        rounds = [{"right": rng.random(), "tokens": 180.0, "loss": 0.1} for _ in range(2)]
        return {"seed": seed, "resumed_at_round": 0, "cpu_seconds": 60.0, "rounds": rounds, "evaluations": evaluations}

    return {
        "recipe": asdict(RECIPE),
        "seeds": list(range(seeds)),
        "labels": {name: source.label for name, source in loop.SOURCES.items()},
        "runs": {name: [one(seed) for seed in range(seeds)] for name in loop.SOURCES},
    }


def test_a_summary_says_what_the_marks_say() -> None:
    result = made_up()
    found = report.summarised(result)
    assert "0101" not in json.dumps(found)
    for name, runs in result["runs"].items():
        for number, held_out in (("0", "longer"), ("1", "stories"), ("2", "sorting")):
            for way in WAYS:
                marks = [one["evaluations"][number][held_out][way]["right"] for one in runs]
                middle, low, high = found["shares"][name][number][held_out][way]
                assert middle == pytest.approx(sum(string.count("1") for string in marks) / 60)
                assert low < middle < high
    for other in ("theta", "once"):
        for column, (held_out, way) in enumerate(COLUMNS):
            ours, theirs = (
                [one["evaluations"]["2"][held_out][way]["right"] for one in result["runs"][name]]
                for name in (report.REFERENCE, other)
            )
            assert found["differences"][other][column] == difference(ours, theirs)


def test_the_page_says_what_the_result_says() -> None:
    text = report.README.read_text()
    assert text == report.written_into(text, report.load()), "run examples/on_policy/report.py --write"
    assert (report.RESULTS / report.PLOT).stat().st_size > 5000
    changed = report.load()
    changed["shares"]["q_star"][str(changed["recipe"]["rounds"])]["stories"]["greedy"][0] = 0.0
    assert report.written_into(text, changed) != text


def test_the_result_is_whole_and_says_where_it_comes_from() -> None:
    result = report.load()
    assert len(result["commit"]) == 40, "begun with files that differ from the commit"
    assert result["recipe"] == json.loads(json.dumps(asdict(loop.Recipe())))
    for runs in result["runs"].values():
        assert [one["seed"] for one in runs] == result["seeds"]
        assert all(len(one["rounds"]) == result["recipe"]["rounds"] for one in runs)
        assert all(len(one["commit"]) == 40 for one in runs)
