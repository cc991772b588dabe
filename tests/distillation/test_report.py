"""Every figure of the pages is made from a file, and a page of an unfinished experiment says so first."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
from distillation import RESULTS, protocol, report, simulation, tables
from distillation.decision import difference, load_draws
from distillation.findings import Results
from distillation.protocol import DRAWS, EPOCHS, SETS, SOURCES
from distillation.report import PAGES, QUOTING, SECTIONS
from distillation.summary import summary

MEASURES = {"rows": 900, "problems": 900, "tokens": 42000, "cut_off": 0, "right": 800, "sound": 700, "cpu_seconds": 5.0}


def made_up(count: int, effects: dict[str, float] | None = None) -> Results:
    """Results in the form of the files, with so many draws of known effects."""
    draws = simulation.simulated(effects or {}, 2.0, np.random.default_rng(0))[:count]
    rng = np.random.default_rng(1)
    for place, draw in enumerate(draws):
        draw |= {
            "draw": place,
            "date": f"2026-12-{place + 1:02d}",
            "machine": {"cpu": "a CPU"},
            "versions": {"torch": "2", "transformers": "5"},
        }
        draw["data"] = {
            name: MEASURES
            | {one: float(rng.uniform(0.1, 0.2)) for one in ("kl", "entropy", "alpha", "theta_logprob")}
            | {"sound": int(rng.integers(400, 800))}
            for name in SOURCES
        }
        for by_epochs in draw["students"].values():
            for one in by_epochs.values():
                one |= {"temperature": 1.0, "cpu_seconds": 40.0}
                for counts in one["sets"].values():
                    counts["greedy"]["sound"] = counts["greedy"]["right"] - 5
                    counts["sampled"] = {"right": counts["greedy"]["right"] - 20, "sound": 1}
        draw["theta"] = copy.deepcopy(draw["students"]["teacher"]["4"])
    pilot = {
        "epsilons": {"kl_budget": 0.05, "kl_budget_matched": 2.0},
        "learning_rates": {name: {"4": 1e-4, "16": 3e-5} for name in SOURCES},
        "validation_right": {
            "by_learning_rate": {name: {"0.0001": 0.5} for name in SOURCES},
            "by_places_lower": {"0": 0.4},
        },
    }
    return Results(draws, pilot, json.loads((RESULTS / "simulation.json").read_text()))


def test_the_pages_say_what_the_files_say() -> None:
    results = Results.load()
    markers = []
    for page in PAGES + QUOTING:
        text = page.read_text()
        assert text == report.written_into(text, results), "run examples/distillation/report.py --write"
        markers += re.findall(r"<!-- ([a-z]+): written by report.py -->", text)
    assert sorted(markers) == sorted(SECTIONS), "each section once, and no marker that nothing fills"


def test_the_summary_says_how_many_draws_there_are() -> None:
    results = Results.load()
    found = json.loads((RESULTS / "summary.json").read_text())
    assert found == summary(results.draws), "run examples/distillation/report.py --write"
    assert (found["draws"], found["draws_of_the_protocol"]) == (len(results.draws), DRAWS)
    for count in (0, 1, 7, DRAWS):
        made = summary(made_up(count, {"entropy": 6.0}).draws)
        assert made["draws"] == count
        assert (made["decision"] is not None) == (count == DRAWS)
    assert made["decision"]["recommended"] == "entropy"
    assert made["minus_controls"]["teacher"]["low"] > 0
    single = summary(made_up(1).draws)["minus_default"]["entropy"]
    assert single["mean"] is not None and single["low"] is None
    assert json.loads(json.dumps(made)) == made


def test_what_is_written_by_hand_has_no_result() -> None:
    """Outside of the markers, no percentage and no number of points: those come from files."""
    for page in PAGES:
        text = re.sub(r"<!-- ([a-z]+): written.*?<!-- \1: end -->", "", page.read_text(), flags=re.DOTALL)
        assert not re.findall(r"[0-9.]+ (?:points more|points better)|[0-9]+\.[0-9]+ ?%", text)
        assert set(re.findall(r"[0-9.]+ %", text)) <= {"95 %"}


def test_an_unfinished_experiment_says_so_first() -> None:
    for count in (0, 1, 5, DRAWS - 1):
        said = report.render(made_up(count), "status")
        assert said.startswith(f"**{count} of {DRAWS} draws: no decision yet.**")
        assert "recommended" not in said and "teach" not in said
        assert (
            f"is not decided: [an experiment by a rule written down first](examples/distillation/README.md) has {count} of"
            in (report.render(made_up(count), "evidence"))
        )
        assert f"has {count} of {DRAWS} draws" in report.render(made_up(count), "recommendation")
    text = PAGES[0].read_text()
    count = len(load_draws())
    if count < DRAWS:
        first = text.split("\n\n")[1]
        assert f"**{count} of {DRAWS} draws: no decision yet.**" in first


def test_a_finished_one_says_what_the_rule_says() -> None:
    nothing = report.render(made_up(DRAWS), "status")
    assert "No other way to choose alpha is shown to be better" in nothing and "not shown to help training" in nothing
    entropy = made_up(DRAWS, {"entropy": 6.0})
    said = report.render(entropy, "status")
    assert said.startswith("**entropy is recommended for training data:**")
    assert (
        "**Mixing token by token helps training here:** students of entropy are better than those of the teacher's own"
        in said
    )
    assert "told from" not in said and "worse" not in said
    worse = report.render(made_up(DRAWS, {"teacher": 6.0}), "status")
    assert (
        "are worse than those of the teacher's own text (-" in worse
        and "cannot be told from those of the best of" in worse
    )
    assert "yes" in report.render(entropy, "rivals")
    assert report.render(made_up(DRAWS), "evidence").startswith("**Not shown to help training:**")
    assert report.render(entropy, "evidence").startswith("**Shown to help training, on one pair of small models:**")
    assert "none was shown to be better" in report.render(made_up(DRAWS), "recommendation")
    assert "**entropy is recommended**" in report.render(entropy, "recommendation")
    gain = difference(entropy.primary, "entropy", "teacher")
    assert f"the teacher's own text ({gain.value:+.1f}, {gain.low:+.1f} to" in report.render(entropy, "evidence")


@pytest.mark.parametrize("count", [0, 1, 2, DRAWS])
def test_every_section_can_be_written_at_any_time(count: int) -> None:
    results = made_up(count)
    for section in SECTIONS:
        text = report.render(results, section)
        assert text.strip() and "inf" not in text.replace("information", "") and "nan" not in text
        cells = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        assert len(set(cells)) <= 1
    no_pilot = Results(results.draws, None, results.simulation)
    assert report.render(no_pilot, "rates") == "The pilot is not finished."


def test_the_tables_are_the_files_figures() -> None:
    """Cells of each kind computed by hand from made-up files."""
    results = made_up(3)

    def share(source: str, *sets: str) -> float:
        """Greedy and right, of both budgets and all draws, in per cent."""
        students = [draw["students"][source][str(epochs)] for draw in results.draws for epochs in EPOCHS]
        counts = [one["sets"][held_out]["greedy"]["right"] for one in students for held_out in sets]
        return sum(counts) / len(counts) / 10

    def row_of(section: str) -> list[str]:
        (row,) = [line for line in report.render(results, section).splitlines() if line.startswith("| entropy |")]
        return [cell.split(" (")[0].strip(" *") for cell in row.split("|")]

    cells = row_of("main")
    assert cells[2] == "88.9", "800 of 900 rows"
    assert float(cells[6]) == pytest.approx(share("entropy", "longer") - share("teacher", "longer"), abs=0.051)
    assert float(row_of("greedy")[-2]) == pytest.approx(share("entropy", *SETS), abs=0.051)


def test_an_interval_of_shares_stays_a_share() -> None:
    assert tables.share([99.0, 100.0, 100.0]) == "99.7 (98.2 to 100.0)"
    assert tables.share([3.0]) == "3.0"


def test_a_changed_file_changes_the_page() -> None:
    results = made_up(4)
    before = {section: report.render(results, section) for section in SECTIONS}
    changed = Results(copy.deepcopy(results.draws), results.pilot, results.simulation)
    changed.draws[2]["students"]["entropy"]["4"]["sets"]["stories"]["greedy"]["right"] -= 300
    after = {section: report.render(changed, section) for section in SECTIONS}
    assert {section for section in SECTIONS if before[section] != after[section]} == {"main", "rivals", "greedy"}


def test_the_pictures_are_there_when_the_page_shows_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from distillation import plots

    for count in (1, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        plots.draw(made_up(count), folder)
        assert {path.name for path in folder.iterdir()} == {"data.png", "students.png"}
    shown = {path for page in PAGES for path in re.findall(r"\]\(results/([a-z]+\.png)\)", page.read_text())}
    assert shown == {path.name for path in RESULTS.glob("*.png")}
    places = {"a": (0.0, 50.0), "b": (0.1, 40.0), "c": (0.2, 60.0), "d": (0.1, 55.0)}
    assert plots.frontier(places) == [(0.0, 50.0), (0.1, 55.0), (0.2, 60.0)]


def test_the_draws_are_whole_and_in_the_protocols_order() -> None:
    """Of the files there are: figures only, of the protocol's sizes, rates and sources, from a commit as it was."""
    results = Results.load()
    assert [draw["draw"] for draw in results.draws] == list(range(len(results.draws)))
    assert not results.draws or results.pilot is not None
    sizes = protocol.Sizes()
    for draw in results.draws:
        assert len(draw["commit"]) == 40, "begun with files that differ from the commit"
        assert draw["epsilons"] == results.pilot["epsilons"]
        assert set(draw["students"]) == set(draw["data"]) == set(SOURCES)
        assert all(one["rows"] == sizes.rows for one in draw["data"].values())
        measures = [tuple(one[name] for name in MEASURES if name != "cpu_seconds") for one in draw["data"].values()]
        assert len(set(measures)) == len(SOURCES), "two sources have the same rows"
        for name, by_epochs in draw["students"].items():
            for epochs, one in by_epochs.items():
                assert one["learning_rate"] == results.pilot["learning_rates"][name][epochs]
                assert one["steps"] == int(epochs) * sizes.rows // protocol.ROWS_PER_STEP
                assert {held_out: counts["problems"] for held_out, counts in one["sets"].items()} == dict.fromkeys(
                    SETS, sizes.held_out
                )


def test_the_simulation_is_of_this_analysis() -> None:
    """The file's rates, within four binomial deviations of what the protocol says the analysis finds."""
    found = json.loads((RESULTS / "simulation.json").read_text())
    assert found["draws"] == DRAWS and set(found["scenarios"]) == set(simulation.scenarios())
    for by_deviation in found["scenarios"].values():
        assert set(by_deviation) == {f"{one:g}" for one in simulation.DEVIATIONS}
        for rates in by_deviation.values():
            assert abs(rates["covered"] - 0.95) < 4 * (0.05 * 0.95 / found["experiments"]) ** 0.5
    said = {"2.4": 0.99, "3.5": 0.85, "4.5": 0.62, "5.3": 0.47}
    power = found["scenarios"]["entropy is 3 points better"]
    assert all(power[one]["entropy_passes"] == pytest.approx(share, abs=0.06) for one, share in said.items())
    text = (report.HERE / "PROTOCOL.md").read_text()
    assert all(f"| {100 * share:.0f} % |" in text for share in said.values())
    for rates in found["scenarios"]["no source differs"].values():
        assert rates["entropy_passes"] + rates["any_other_passes"] < 0.05
