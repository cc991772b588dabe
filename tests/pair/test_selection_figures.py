"""The recorded figures of selection: of all shipped problems, and those that docs/sequences.md quotes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import measure_selection
import pytest
import task
import torch
from measure import interval, load
from transformers import AutoTokenizer

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "sequences.md"
PARAMETERS = DOCUMENT.with_name("parameters.md")
README = DOCUMENT.parents[1] / "README.md"
METHODS = ("kl_symmetry", "entropy", "fixed")


@pytest.fixture(scope="module")
def figures(pair: Path) -> dict:
    return json.loads((pair / "selection.json").read_text())


def test_they_are_of_all_shipped_problems(pair: Path, figures: dict) -> None:
    count = len(task.read_rows(pair / "problems.jsonl"))
    assert figures["settings"]["problems"] == count
    for method in METHODS:
        assert set(figures[method]["kept"]) == set(measure_selection.RULES)
        for by_number in figures[method]["kept"].values():
            for kept in by_number.values():
                for word in ("right", "sound"):
                    assert kept[word]["rate"] == round(kept[word]["count"] / count, 4)
                    assert kept[word]["interval_95"] == list(interval(kept[word]["count"], count))
                assert kept["sound"]["count"] <= kept["right"]["count"]


def test_selection_by_log_z_is_better_than_a_draw(figures: dict) -> None:
    """The intervals of one draw and of the best of 4 do not meet."""
    for method in METHODS:
        kept = figures[method]["kept"]
        for word in ("right", "sound"):
            assert kept["log_z"]["4"][word]["interval_95"][0] > kept["one draw"]["1"][word]["interval_95"][1]
        assert figures[method]["median_log_z"]["wrong"] < figures[method]["median_log_z"]["right"] < 0


def test_the_document_quotes_them(figures: dict) -> None:
    text = DOCUMENT.read_text().split("<!-- selection: tests")[1].split("<!-- selection: end")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 11
    for label, number, *cells in rows:
        rule = label.replace("`", "")
        size = re.sub(r"\D", "", number) or "1"
        for place, method in enumerate(METHODS):
            for offset, word in enumerate(("right", "sound")):
                kept = figures[method]["kept"][rule][size][word]
                low, high = kept["interval_95"]
                assert cells[2 * place + offset] == f"{100 * kept['rate']:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def test_one_draw_of_each_method_is_quoted(pair: Path, figures: dict) -> None:
    """In docs/parameters.md, and in README with the models alone."""
    text = PARAMETERS.read_text().split("<!-- methods: tests")[1].split("<!-- methods: end")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(METHODS)
    for label, *cells in rows:
        method = label.split("`")[1]
        kept = figures[method]["kept"]["one draw"]["1"]
        expected = []
        for word in ("right", "sound"):
            low, high = kept[word]["interval_95"]
            expected.append(f"{100 * kept[word]['rate']:.1f} ({100 * low:.0f} to {100 * high:.0f})")
        assert cells == [*expected, f"{figures[method]['kl_theta_per_token']:.3f}"]

    readme = " ".join(README.read_text().split())
    alone = json.loads((pair / "figures.json").read_text())["problems"]
    one_draw = figures["kl_symmetry"]["kept"]["one draw"]["1"]
    for said in (
        f"on {100 * alone['theta']['rate']:.0f} % of problems",
        f"q\\* on {100 * one_draw['right']['rate']:.0f} %",
        f"on {100 * alone['teacher']['rate']:.1f} %",
        f"right in every step on {100 * one_draw['sound']['rate']:.0f} %",
    ):
        assert said in readme, said


def test_the_rows_drawn_have_the_record_that_selection_reads(pair: Path) -> None:
    """-kl at every token under KL symmetry, and a text's scores are the sums over it."""
    torch.set_num_threads(1)
    rows = task.read_rows(pair / "problems.jsonl")[:3]
    tokenizer = AutoTokenizer.from_pretrained(pair / "theta")
    models = (load(pair / "teacher"), load(pair / "theta"))
    generator = torch.Generator().manual_seed(0)
    for candidate in measure_selection.draw(tokenizer, *models, rows, "kl_symmetry", generator):
        assert candidate.record["log_z"] == pytest.approx([-kl for kl in candidate.record["kl"]], abs=1e-9)
        assert candidate.scores.log_z == pytest.approx(sum(candidate.record["log_z"]))
        assert candidate.scores.num_tokens == len(candidate.token_ids)


def test_the_document_quotes_what_the_engine_drew(pair: Path) -> None:
    kept = json.loads((pair / "selection_engine.json").read_text())["kept"]
    text = " ".join(DOCUMENT.read_text().split())
    for words, rule in (
        ("one draw {} right and {} sound", "one draw"),
        ("the best of 4 by Σ log Z {} and {}", "log_z"),
        ("resampled {} and {}", "resample"),
        ("by the teacher {} and {}", "teacher_logprob"),
    ):
        rates = (f"{100 * kept[rule][word] / kept[rule]['rows']:.1f} %" for word in ("right", "sound"))
        assert words.format(*rates) in text
