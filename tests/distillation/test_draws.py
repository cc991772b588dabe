"""From pilots to a draw's file, in small; what is finished is not done again."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from distillation import pilot, run, work
from distillation.decision import primary
from distillation.pieces import piece
from distillation.protocol import EPOCHS, LEARNING_RATES, SETS, SOURCES, Sizes
from distillation.work import Draw

SMALL = Sizes(rows=6, training_problems=80, held_out=8, validation=8, matched_on=4)


def in_this_process(function: Callable[..., Any], arguments: Iterable[tuple]) -> list[Any]:
    return list(itertools.starmap(function, arguments))


def test_a_piece_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict:
        calls.append(1)
        return {"share": 0.1234567891}

    first = piece(tmp_path / "a" / "b.json", compute)
    assert piece(tmp_path / "a" / "b.json", compute) == first
    assert calls == [1]
    assert first["share"] == 0.12345679
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_a_piece_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        piece(tmp_path / "b.json", lambda: {"x": 1 / 0})
    assert not list(tmp_path.iterdir())


def test_rows_that_another_run_makes_meanwhile_move_no_others(
    tmp_path: Path, fixed: dict[str, Any], monkeypatch
) -> None:
    """Each file has the rows of its own source, whatever appeared while the others were drawn."""
    names = ("theta_cold", "teacher", "entropy")
    alone, beside = Draw(tmp_path / "alone", 3, SMALL), Draw(tmp_path / "beside", 3, SMALL)
    work.make_rows(alone, fixed["epsilons"], names)

    def piece_beside_another(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if path == beside.rows_of("teacher"):
            path.write_bytes(alone.rows_of("teacher").read_bytes())
        return piece(path, compute)

    monkeypatch.setattr(work, "piece", piece_beside_another)
    work.make_rows(beside, fixed["epsilons"], names)
    for name in names:
        assert [vars(text) for text in work.texts_of(beside, name)] == [
            vars(text) for text in work.texts_of(alone, name)
        ]
    beside.rows_of("entropy").write_bytes(alone.rows_of("teacher").read_bytes())
    with pytest.raises(ValueError, match="has the rows of teacher"):
        work.texts_of(beside, "entropy")


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    with run.alone_in(tmp_path / "work"):
        command = [sys.executable, run.__file__, "--work", str(tmp_path / "work"), "--results", str(tmp_path)]
        other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert f"another run is at work in {tmp_path / 'work'}" in other.stderr
    with run.alone_in(tmp_path / "work"):
        pass


@pytest.fixture(scope="module")
def fixed() -> dict[str, Any]:
    rates = {name: dict.fromkeys(map(str, EPOCHS), 1e-4) for name in SOURCES}
    return {"epsilons": {"kl_budget": 0.05, "kl_budget_matched": 1.0}, "learning_rates": rates}


def test_a_draw_goes_on_where_it_was_interrupted(tmp_path: Path, fixed: dict[str, Any]) -> None:
    """Stopped among its students, then finished: the same figures as another folder's, and nothing twice."""
    draw = Draw(tmp_path / "work", 3, SMALL)

    def interrupted(function: Callable[..., Any], arguments: Iterable[tuple]) -> list[Any]:
        found = in_this_process(function, itertools.islice(arguments, 3))
        if len(found) == 3:
            raise KeyboardInterrupt
        return found

    with pytest.raises(KeyboardInterrupt):
        run.recorded(tmp_path / "draw-03.json", lambda: run.one_draw(draw, fixed, interrupted))
    assert not (tmp_path / "draw-03.json").exists()
    made = {path: path.stat().st_mtime_ns for path in draw.folder.rglob("*.json")}
    assert len(made) == len(SOURCES) + 1 + 3
    run.recorded(tmp_path / "draw-03.json", lambda: run.one_draw(draw, fixed, in_this_process))
    assert all(path.stat().st_mtime_ns == then for path, then in made.items())

    found = json.loads((tmp_path / "draw-03.json").read_text())
    assert (found["draw"], set(found["students"]), set(found["data"])) == (3, set(SOURCES), set(SOURCES))
    for name, by_epochs in found["students"].items():
        assert set(by_epochs) == set(map(str, EPOCHS))
        assert [one["steps"] for one in by_epochs.values()] == [16, 4]
        assert 0 <= primary(found, name) <= 100
        for one in by_epochs.values():
            assert {held_out: counts["problems"] for held_out, counts in one["sets"].items()} == dict.fromkeys(SETS, 8)
    texts = json.dumps(found)
    assert "The answer" not in texts and "token_ids" not in texts, "figures only"

    def unused(*_: Any) -> Any:
        raise AssertionError("finished draws are read")

    assert run.recorded(tmp_path / "draw-03.json", lambda: run.one_draw(draw, fixed, unused)) == found


@pytest.mark.full
def test_the_pilots_fix_the_rates(tmp_path: Path) -> None:
    found = pilot.pilot(tmp_path, in_this_process, SMALL)
    assert set(found["learning_rates"]) == set(SOURCES)
    assert 0 < found["epsilons"]["kl_budget"] < found["epsilons"]["kl_budget_matched"]
    for rates in found["learning_rates"].values():
        assert rates["16"] <= rates["4"] and set(rates.values()) <= set(LEARNING_RATES)
    again = pilot.pilot(tmp_path, in_this_process, SMALL)
    assert again == found
