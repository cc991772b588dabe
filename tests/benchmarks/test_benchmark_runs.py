"""The heavy benchmark as it is called, small: engines in processes of their own, one file out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import table
from fit import MeasuredBatch, error, fit
from growth import cost_at
from methods.steps import Step
from prompts import make_prompts
from roofline import Hardware, alone_seconds, predict, round_seconds, scored_seconds, self_seconds
from selection import EXAMPLE
from transformers import AutoTokenizer


@pytest.mark.full
def test_heavy_benchmark(tmp_path: Path) -> None:
    output = tmp_path / "heavy.json"
    command = [sys.executable, table.HERE / "heavy_benchmark.py", "--configurations", "6x24", "--repeats", "1"]
    command += ["--methods", "teacher", "optimal", "--acceptance", "0.2", "0.9", "--output", output, "--logs", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(output.read_text())
    assert result["failed"] == {}
    (line,) = result["configurations"]
    methods = line["methods"]
    assert set(methods) == {"teacher", "optimal at 0.2", "optimal at 0.9"}
    assert methods["teacher"]["of_teacher"]["median"] == 1
    assert methods["teacher"]["steps"] == 24
    for name in ("optimal at 0.2", "optimal at 0.9"):
        one = methods[name]
        # About 60 drafts are looked at: five standard errors are 0.3.
        assert one["acceptance"] == pytest.approx(one["set_acceptance"], abs=0.3)
        speed = 6 * 24 / one["seconds"][0]
        assert one["tokens_per_second"]["median"] == pytest.approx(speed, rel=1e-3)
        assert one["of_teacher"]["median"] == pytest.approx(
            methods["teacher"]["seconds"][0] / one["seconds"][0], rel=1e-3
        )
    assert methods["optimal at 0.9"]["steps"] < methods["optimal at 0.2"]["steps"] < 24
    assert "drafts accepted at 0.9 (set)" in table.render(table.load(tmp_path), ["heavy"])


def test_prompts_are_the_same_for_all_and_new_for_each_batch() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE / "teacher")
    assert make_prompts(tokenizer, 6, seed=1) == make_prompts(tokenizer, 6, seed=1)
    first, second = (make_prompts(tokenizer, 6, seed=seed) for seed in (1, 2))
    assert not {tuple(one.teacher) for one in first} & {tuple(one.teacher) for one in second}
    short, medium, long = first[:3]
    assert len(short.theta) < len(medium.theta) < len(long.theta)
    for one in first:
        assert "Answer" in tokenizer.decode(one.teacher)
        assert "Answer" not in tokenizer.decode(one.theta)


def test_cost_by_length() -> None:
    steps = [Step(tokens=tokens, seconds={"step": seconds}) for tokens, seconds in [(2, 3.0), (6, 1.0), (8, 4.0)]]
    assert cost_at(steps, batch=2, lengths=[8, 1, 4]) == pytest.approx({1: 1.5, 4: 0.5, 8: 0.5})
    with pytest.raises(ValueError, match="before the lengths"):
        cost_at(steps, batch=2, lengths=[9])


def test_roofline_by_hand() -> None:
    """One request, a memory-bound machine: times are bytes over bandwidth, and theta reads its weights K + 1 times."""
    hardware = Hardware(bandwidth=1e12, peak=1e18, efficiency=0.5, launch=1e-3, graph_launch=0.0)
    ((line,),) = (one["batches"] for one in predict("qwen2.5-3b-1.5b", hardware, [1], 0, [0.8])["predictions"])
    # 3.086 and 1.544 billion weights of two bytes, and rows of logits below a thousandth of that.
    assert line["teacher_step_seconds"] == pytest.approx(1e-3 + 2 * 3.086e9 / 0.5e12, rel=2e-3)
    rows = line["best_drafts"] + 1
    assert line["round_seconds"] == pytest.approx(1e-3 + (2 * 3.086e9 + rows * 2 * 1.544e9) / 0.5e12, rel=5e-3)
    with pytest.raises(ValueError, match="efficiency"):
        Hardware(1e12, 1e15, 1.5, 0.0, 0.0)


def test_roofline_of_a_theta_that_scores_by_hand() -> None:
    """Each model's weights are read once a step; where there is one model, once for both, and its cache for both prompts."""
    hardware = Hardware(bandwidth=1e12, peak=1e18, efficiency=0.5, launch=1e-3)
    pair, teacher, theta = "qwen2.5-3b-1.5b", 2 * 3.086e9, 2 * 1.544e9
    for drafts in (0, 3):
        assert scored_seconds(pair, hardware, 1, drafts, 0) == pytest.approx(
            1e-3 + (teacher + theta) / 0.5e12, rel=5e-3
        )
        assert self_seconds(pair, hardware, 1, drafts, 0) == pytest.approx(1e-3 + teacher / 0.5e12, rel=5e-3)
    cache = 2 * 36 * 2 * 128 * 2 * 1000  # of 1,000 tokens: keys and values, 36 layers, 2 heads of 128, two bytes
    grown = self_seconds(pair, hardware, 1, 0, 1000) - self_seconds(pair, hardware, 1, 0, 0)
    assert grown == pytest.approx(2 * cache / 0.5e12)


def test_a_layer_has_a_floor_and_the_host_its_time() -> None:
    pair, base = "qwen2.5-7b-0.5b", Hardware(bandwidth=1e15, peak=1e20, efficiency=1.0, launch=0.0)
    floored = dataclasses.replace(base, layer_floor=1e-5, layer_per_request=1e-7)
    slow = dataclasses.replace(floored, host_step=0.5, host_per_request=0.01)
    # 28 layers of the teacher once, and 24 of theta four times; the rest is below a tenth.
    wanted = (28 + 4 * 24) * (1e-5 + 8e-7)
    assert round_seconds(pair, floored, 8, 3, 0) - round_seconds(pair, base, 8, 3, 0) == pytest.approx(wanted)
    assert round_seconds(pair, slow, 8, 3, 0) == pytest.approx(0.58)


def test_the_fit_finds_the_figures_that_made_the_times() -> None:
    truth = Hardware(4.8e12, 9.89e14, 0.7, 2e-4, 0.0, 5e-5, 2e-7, 0.6, host_step=2e-3, host_per_request=4e-5)
    shapes = [
        (method, drafts, batch)
        for method, drafts in (("teacher", 0), ("optimal", 1), ("optimal", 4))
        for batch in (1, 8, 64, 256)
    ]
    shapes += [("theta", 0, batch) for batch in (1, 8, 64)]
    batches = [
        MeasuredBatch("", "", "qwen2.5-3b-1.5b", batch, 256, method, drafts, 100.0, batch, 1.0)
        for method, drafts, batch in shapes
    ]
    batches = [dataclasses.replace(one, seconds=one.predicted(truth)) for one in batches]
    found = fit(batches, truth.bandwidth, truth.peak)
    assert error(batches, found) < 0.02
    for batch in (8, 128):
        for drafts in (2, 7):  # not among those it saw
            times = [round_seconds("qwen2.5-3b-1.5b", one, batch, drafts, 512) for one in (truth, found)]
            assert times[1] == pytest.approx(times[0], rel=0.05)
    with pytest.raises(ValueError, match="too few"):
        fit(batches[:3], truth.bandwidth, truth.peak)


def test_predictions_are_near_what_was_measured() -> None:
    """Ratios in the middle of long batches; what a file predicts is made from the file of the fit."""
    (result,) = (one for one in table.load(table.HERE / "results") if one["file"] == "fit-h200.json")
    hardware = Hardware(**result["hardware"])
    assert result["median_error"] < 0.05
    for pair, file in (
        ("qwen2.5-3b-1.5b", "heavy-qwen2.5-3b-1.5b.json"),
        ("qwen2.5-7b-0.5b", "heavy-qwen2.5-7b-0.5b.json"),
    ):
        (measured,) = (one for one in table.load(table.HERE / "results") if one["file"] == file)
        for one in measured["configurations"]:
            if one["batch"] > 32:
                continue  # ran without graphs
            steps = [one["methods"][name]["seconds_per_step"]["median"] for name in ("teacher", "optimal at 0.9")]
            context = 100 + one["max_tokens"] / 2
            predicted = round_seconds(pair, hardware, one["batch"], 4, context) / alone_seconds(
                pair, hardware, one["batch"], context
            )
            assert predicted == pytest.approx(steps[1] / steps[0], rel=0.12)
    for one in table.load():
        if one["benchmark"] == "roofline":
            assert one["hardware"] == result["hardware"]
