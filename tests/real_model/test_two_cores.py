"""The pilot on a CPU: every part in lockstep, with the example pair's theta in SmolLM2's place, and stages that go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from real_model import HERE, work
from real_model.protocol import SMALL, SOURCES, TWO_CORES
from real_model.run import all_jobs, keep_finished, keep_progress, read, shipped
from real_model.work import Place
from transformers import AutoTokenizer

PAIR = HERE.parent / "pair"


def place_of(state: Path, **sizes: object) -> Place:
    made = replace(SMALL, **sizes)
    shipped(state / "problems", made)
    return Place(state, state / "problems", PAIR / "theta", made, in_lockstep=True)


def test_every_part_in_lockstep(tmp_path: Path) -> None:
    place = place_of(tmp_path, learning_rates=TWO_CORES.learning_rates, epochs=TWO_CORES.epochs)
    jobs = all_jobs(place, 1)
    assert not any("tuning" in str(job.path) for job in jobs), "one learning rate needs no search"
    for job in jobs:
        assert all(path.exists() for path in job.needs)
        job.function(*job.arguments)
    assert keep_finished(place, tmp_path / "results") == [0]
    keep_progress(place, tmp_path / "results")
    draw = read(tmp_path / "results" / "draw-0.json")
    assert set(draw["fixed"]["learning_rates"].values()) == {3e-5}
    assert draw["data"]["fixed_0.5"]["alpha"] == 0.5 and 0 < draw["data"]["kl_symmetry"]["alpha"] < 1
    assert draw["data"]["theta_cold"]["kl"] == 0 < draw["data"]["teacher"]["kl"]
    assert all(draw["students"][name]["tasks"] for name in SOURCES if draw["data"][name]["rows"])
    progress = read(tmp_path / "results" / "progress.json")
    assert [len(progress["stages"][who]) for who in ("theta", "teacher")] == [SMALL.stages, SMALL.stages]
    assert progress["gate"]["passes"] == draw["gate"]["passes"]
    assert len(progress["parts"]) == len(jobs) and all(one["cpu_seconds"] >= 0 for one in progress["parts"].values())


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    """Two stages in one call, or in two calls: the same counts and the same weights."""
    found = {}
    for name, calls in (("at once", (2,)), ("in two calls", (1, 2))):
        for stages in calls:
            place = place_of(tmp_path / name, stages=2)
            place = replace(place, sizes=replace(place.sizes, stages=stages))
            model, tokenizer = work.load(PAIR / "theta"), AutoTokenizer.from_pretrained(PAIR / "theta")
            counts = work.in_stages(place, model, tokenizer, "theta", wanted=1.1)
        found[name] = model.state_dict(), [(one["loss"], one["first_texts"]) for one in counts]
        assert [path.name for path in (tmp_path / name / "models").iterdir()] == ["theta-01"]
    (once, said), (twice, also_said) = found.values()
    assert said == also_said
    torch.testing.assert_close(twice, once, rtol=0, atol=0)


@pytest.mark.parametrize(("wanted", "stages"), [(0.0, 1), (1.1, 3)])
def test_training_ends_at_the_share_that_is_wanted(tmp_path: Path, wanted: float, stages: int) -> None:
    place = place_of(tmp_path, stages=3)
    model, tokenizer = work.load(PAIR / "theta"), AutoTokenizer.from_pretrained(PAIR / "theta")
    assert len(work.in_stages(place, model, tokenizer, "teacher", wanted)) == stages
