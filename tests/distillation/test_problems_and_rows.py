"""Training and tuning keep away from the held-out problems, and every source is asked for in the product's own words."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest
import task  # found by the package `distillation`
from distillation.forms import FORMS
from distillation.generation import (
    check_apart,
    draw_problems,
    filter_command,
    generate_command,
    numbers_of,
    read_source,
    run_command,
    write_jsonl,
)
from distillation.sources import SHORT, SOURCES
from distillation.student import held_out


@pytest.fixture(scope="module")
def reserved() -> dict[str, list[dict]]:
    return held_out()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_no_held_out_problem_is_trained_or_tuned_on(form, reserved: dict[str, list[dict]]) -> None:
    drawn = {
        "first": draw_problems("train", form.problem_seed, form.problems),
        "second": draw_problems("train", form.problem_seed + 1, form.problems),
        "validation": draw_problems("validation", form.validation_seed, form.validation_problems),
    }
    for name, problems in drawn.items():
        for kept in reserved.values():
            assert not {row["problem"] for row in problems} & {row["problem"] for row in kept}
            assert not set(map(numbers_of, problems)) & set(map(numbers_of, kept))
        check_apart(**{name: problems}, **reserved)
    check_apart(training=drawn["first"], validation=drawn["validation"])


def test_a_reworded_held_out_problem_is_refused(reserved: dict[str, list[dict]]) -> None:
    stolen = dict(reserved["stories"][7])
    reworded = stolen | {"problem": stolen["problem"].replace("How many", "Say how many").replace("What is", "Say")}
    assert reworded["problem"] != stolen["problem"]
    training = [*draw_problems("train", 1, 50), reworded]
    with pytest.raises(ValueError, match="training and held_out problems share 1"):
        check_apart(training=training, held_out=reserved["stories"])


def test_the_teacher_alone_sees_the_answer(tmp_path: Path) -> None:
    """Except in the source that is to be without it; all sources draw one sample of each problem with the same engine."""
    for name, source in SOURCES.items():
        if source.made != "drawn":
            continue
        command = generate_command(source, tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "theta", 0)
        value = dict(itertools.pairwise(command))
        assert value["--theta-template"] == "{{ problem }}"
        assert ("answer" in value["--teacher-template"]) == source.privileged == (name != "teacher_without_answer")
        assert value["--num-samples"] == "1"


@pytest.mark.parametrize("name", ["kl_symmetry", "teacher_without_answer"])
def test_the_command_hides_the_answer_from_theta(tmp_path: Path, name: str) -> None:
    """As the command itself shows it, which refuses columns that no row has."""
    problems = draw_problems("train", 1, 1)
    write_jsonl(tmp_path / "in.jsonl", problems)
    theta = tmp_path / "theta"
    command = generate_command(SOURCES[name], tmp_path / "in.jsonl", tmp_path / "out.jsonl", theta, 0)
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["theta"] == [{"role": "user", "content": problems[0]["problem"]}]
    assert shown["privileged_context"] == (problems[0]["answer"] if SOURCES[name].privileged else None)
    assert ("theta is not shown: answer" in done.stderr) == SOURCES[name].privileged


def test_the_sources_are_those_of_the_issue() -> None:
    assert set(SHORT) <= set(SOURCES)
    for name, source in SOURCES.items():
        assert (source.made == "filtered") == (source.right_of is not None), name
        if source.right_of:
            assert SOURCES[source.right_of].made == "drawn"


def test_the_filter_keeps_what_the_task_calls_right(tmp_path: Path) -> None:
    problems = draw_problems("train", 3, 30)
    rows = []
    for i, problem in enumerate(problems):
        said = problem["solution"] if i % 3 else problem["solution"].replace(f"is {problem['answer']}.", "is 107.")
        row = {
            "custom_id": problem["id"],
            "completion": [{"role": "assistant", "content": said}],
            "finish_reason": "stop",
            "error": None,
        }
        rows.append(problem | row)
    write_jsonl(tmp_path / "theta.jsonl", rows)
    run_command(filter_command(tmp_path / "theta.jsonl", tmp_path / "right.jsonl"), tmp_path / "log")
    kept = {row["custom_id"] for row in read_source(tmp_path, "right")}
    right = {row["custom_id"] for row in rows if task.is_right(row["completion"][0]["content"], row["answer"])}
    assert kept == right
    assert len(right) == 20


def test_a_failed_row_stops_the_experiment(tmp_path: Path) -> None:
    rows = [{"custom_id": "a", "error": None}, {"custom_id": "b", "error": "too long"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="1 rows of x failed, the first because: too long"):
        read_source(tmp_path, "x")
