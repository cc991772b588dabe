"""The recorded figures: they keep the pair's promises and are those of the shipped weights."""

import hashlib
import json
import math
from pathlib import Path

import measure
import pytest
import task
import torch
from transformers import AutoTokenizer

LIVE_PROBLEMS = 48
# Chance that one live comparison fails though the weights are those measured, another seed or another machine given.
FALSE_ALARM = 1e-5


@pytest.fixture(scope="module")
def figures(pair: Path) -> dict:
    return json.loads((pair / "figures.json").read_text())


def test_theta_has_room_and_q_star_fills_it(figures: dict) -> None:
    rates = {name: figure["rate"] for name, figure in figures["problems"].items()}
    assert 0.30 <= rates["theta"] <= 0.60
    assert rates["teacher"] >= 0.95
    assert rates["theta"] <= rates["teacher_without_answer"] <= rates["teacher"]
    assert rates["q_star"] >= rates["theta"] + 0.20


def test_the_second_skill_is_there_to_be_forgotten(figures: dict) -> None:
    assert figures["problems_sorting"]["theta"]["rate"] >= 0.4


def test_alpha_and_acceptance(figures: dict) -> None:
    q_star = figures["problems"]["q_star"]
    assert 0.3 <= q_star["mean_alpha"] <= 0.5
    # q* lies between theta and the teacher, so theta's drafts are kept more often than by the teacher.
    assert q_star["acceptance_against_teacher"] < q_star["acceptance_against_q"] < 1
    assert 25 <= q_star["tokens_per_completion"] <= 60


@pytest.mark.parametrize("name", ["problems", "problems_longer", "problems_sorting"])
def test_figures_are_of_all_shipped_problems(pair: Path, figures: dict, name: str) -> None:
    count = len(task.read_rows(pair / f"{name}.jsonl"))
    for figure in figures[name].values():
        assert figure["problems"] == count >= 300
        assert figure["rate"] == round(figure["right"] / count, 4)
        low, high = figure["interval_95"]
        assert low < figure["rate"] < high or figure["rate"] in (0, 1)


@pytest.mark.parametrize("model", ["teacher", "theta"])
def test_figures_are_of_the_shipped_weights(pair: Path, figures: dict, model: str) -> None:
    weights = (pair / model / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == figures["sha256"][model]


def test_the_first_page_quotes_the_figures(pair: Path, figures: dict) -> None:
    words = " ".join((pair.parents[1] / "README.md").read_text().split())
    right = {name: 100 * figures["problems"][name]["rate"] for name in ("theta", "q_star", "teacher")}
    said = f"theta is right on {right['theta']:.0f} % of problems, q\\* on {right['q_star']:.0f} %, "
    assert f"{said}the teacher with the answer on {right['teacher']:.1f} %" in words
    acceptance = figures["problems"]["q_star"]["acceptance_against_q"]
    assert f"on the example pair it is {acceptance:.2f}" in words


def test_the_readme_quotes_the_figures(pair: Path, figures: dict) -> None:
    readme = (pair / "README.md").read_text()
    rows = {
        "theta": "theta",
        "teacher_without_answer": "teacher, without the",
        "teacher": "teacher, with the",
        "q_star": "q*",
    }
    for key, label in rows.items():
        quoted = next(line for line in readme.splitlines() if line.startswith(f"| {label}"))
        shares = [
            f"{100 * figures[name][key]['rate']:.1f} %" for name in ("problems", "problems_longer", "problems_sorting")
        ]
        assert all(share in quoted for share in shares), (quoted, shares)


@pytest.fixture(scope="module")
def live(pair: Path) -> dict:
    """The pair measured again on the first problems, with a seed of its own."""
    teacher, theta = measure.load(pair / "teacher"), measure.load(pair / "theta")
    tokenizer = AutoTokenizer.from_pretrained(pair / "theta")
    rows = task.read_rows(pair / "problems.jsonl")[:LIVE_PROBLEMS]
    return measure.measure(teacher, theta, tokenizer, rows, seed=11)


@pytest.mark.parametrize("name", ["theta", "teacher_without_answer", "teacher", "q_star"])
def test_the_shipped_weights_are_as_right_as_recorded(figures: dict, live: dict, name: str) -> None:
    """Two shares of one chance: Fisher's exact test, two-sided, at ``FALSE_ALARM``."""
    recorded, now = figures["problems"][name], live[name]
    assert fisher(now["right"], now["problems"], recorded["right"], recorded["problems"]) > FALSE_ALARM, (recorded, now)


def test_fisher_tells_a_broken_pair_from_the_recorded_one(figures: dict) -> None:
    """Theta in the teacher's place, or the other way about, would be seen."""
    theta, teacher = figures["problems"]["theta"], figures["problems"]["teacher"]
    swapped = round(LIVE_PROBLEMS * theta["rate"])
    assert fisher(swapped, LIVE_PROBLEMS, teacher["right"], teacher["problems"]) < FALSE_ALARM
    assert fisher(LIVE_PROBLEMS, LIVE_PROBLEMS, theta["right"], theta["problems"]) < FALSE_ALARM


def test_live_alpha_and_acceptance_are_as_recorded(figures: dict, live: dict) -> None:
    """Means over some 2,200 tokens; 0.02 is 5 standard errors of the widest, 0.004 (bootstrapped by problem)."""
    for name in ("mean_alpha", "acceptance_against_q", "acceptance_against_teacher"):
        assert live["q_star"][name] == pytest.approx(figures["problems"]["q_star"][name], abs=0.02)


def fisher(right: int, count: int, other_right: int, other_count: int) -> float:
    """The chance of a split of all right answers at most as likely as the one seen."""
    total, all_right = count + other_count, right + other_right

    def chance(k: int) -> float:
        return math.comb(count, k) * math.comb(other_count, all_right - k) / math.comb(total, all_right)

    seen = chance(right) * (1 + 1e-9)
    possible = range(max(0, all_right - other_count), min(count, all_right) + 1)
    return sum(chance(k) for k in possible if chance(k) <= seen)


def test_mix_is_equally_far_from_both() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (
        torch.randn(2, 200, 50, generator=generator, dtype=torch.float64)
        * torch.tensor([1.0, 4.0, 16.0, 40.0]).repeat(50)[:, None]
    )
    theta, teacher = rows.log_softmax(-1)
    q, alpha = measure.mix(theta, teacher)
    to_theta, to_teacher = ((q.exp() * (q - other)).sum(-1) for other in (theta, teacher))
    assert (to_theta - to_teacher).abs().max() < 1e-9
    geometric = (1 - alpha)[:, None] * theta + alpha[:, None] * teacher
    assert torch.allclose(q, geometric.log_softmax(-1), atol=1e-9)


def test_mix_of_identical_rows_is_the_row() -> None:
    row = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    q, alpha = measure.mix(row, row.clone())
    assert torch.equal(alpha, torch.full((3,), 0.5, dtype=torch.float64))
    assert torch.allclose(q, row)
