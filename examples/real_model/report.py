"""The page's tables, from the files in results/ and nothing else.

python examples/real_model/report.py             prints them
python examples/real_model/report.py --write     puts them between the markers of README.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from real_model import HERE, RESULTS  # first: it finds the modules that follow

# isort: split
from distillation.means import Mean
from distillation.pages import with_section
from distillation.tables import table, with_interval

from real_model.analysis import controls, load_draws, rivals, sentences
from real_model.cost import Assumed, extrapolated, predicted
from real_model.gate import RATE
from real_model.protocol import (
    DEFAULT,
    DRAWS,
    PILOT,
    SOURCES,
    TEACHER_RATE,
    THETA_RATE,
    TRAINED,
    TWO_CORES,
    UNTRAINED,
    Sizes,
)

PAGE = HERE / "README.md"
PILOT_PARTS = {
    "the gate": "gate",
    "rows of the thrown-away draw": f"draw-{PILOT:04d}/rows/",
    "rows of draw 0": "draw-0000/rows/",
    "students of draw 0 and their answers": "draw-0000/students/",
    "theta's answers": "draw-0000/theta",
}
"""Parts of the pilot on two cores, by how their files' names begin."""
NAMES = {"theta": "theta's", "teacher": "the teacher's"}
WAYS = {"theta": "the problem", "told": "and the answer", "shown": "and the worked solution"}


@dataclass(frozen=True)
class Results:
    """Everything that the page is made of."""

    draws: list[dict[str, Any]]
    gate: dict[str, Any]
    cost: dict[str, Any]
    pilot: dict[str, Any]
    """How far the pilot on two cores is."""
    answer_teacher: dict[str, Any]
    """Its teacher before the last change of the protocol, which read the answer alone."""
    pilot_draws: list[dict[str, Any]]
    """Its draw, once finished."""

    @classmethod
    def load(cls, folder: Path = RESULTS) -> Results:
        files = (folder / f"{name}.json" for name in ("gate", "cost", "two_cores/progress", "two_cores/answer_teacher"))
        read = (json.loads(file.read_text()) for file in files)
        return cls(load_draws(folder), *read, load_draws(folder / "two_cores"))


def state(results: Results) -> str:
    """The page's first words."""
    if not results.draws:
        said = f"Nothing is known yet of students of a real model: none of the {DRAWS} draws has been made."
    else:
        said = f"{len(results.draws)} of {DRAWS} draws. {' '.join(sentences(results.draws))}"
    ways, outcome = results.gate["ways"], results.gate.get("passes", {})
    if not outcome:
        theta = ways["theta"]
        return (
            f"{said} What is measured is SmolLM2-135M alone: {theta['right']} of {theta['problems']} texts are right."
        )
    passing = [WAYS[way].removeprefix("and ") for way, passes in outcome.items() if passes]
    if passing:
        return (
            f"{said} SmolLM2-135M as its own teacher passes the gate with {' and with '.join(passing)} in its prompt."
        )
    best = max((ways[way] for way in outcome), key=lambda one: one["right"] / one["problems"])
    return (
        f"{said} What is measured is the gate: SmolLM2-135M as its own teacher fails it, with "
        f"{best['right']} of {best['problems']} texts right at best where {100 * RATE:.0f} % are asked for."
    )


def share(counts: dict[str, Any]) -> list[str]:
    """How many texts are right, and Wilson's interval."""
    low, high = (max(0.0, 100 * end) for end in counts["interval_95"])
    return [f"{counts['right']} of {counts['problems']}", f"{low:.0f} to {high:.0f} %"]


def pilot_state(results: Results) -> str:
    """What the pilot on two cores says of its two models."""
    stages, gate = results.pilot["stages"], results.pilot["gate"]
    if gate:
        theta, teacher = (f"{gate[who]['right']} of {gate[who]['problems']}" for who in ("theta", "teacher"))
        verdict = "passes" if gate["passes"] else "fails"
        return (
            f"In the pilot on two cores the second teacher, trained with the worked solution in its prompt, "
            f"**{verdict} the gate**: {teacher} texts are right, of theta's {theta}."
        )
    who = "teacher" if stages["teacher"] else "theta"
    if not stages[who]:
        return "The pilot on two cores has begun."
    (right, _), count = share(stages[who][-1]), len(stages[who])
    wanted = 100 * {"theta": THETA_RATE, "teacher": TEACHER_RATE}[who]
    return (
        f"The pilot on two cores is not at its gate yet: after {count} stage{'s' * (count > 1)} of {NAMES[who]} training "
        f"{right} texts are right, and training ends at {wanted:.0f} %."
    )


def pilot_table(results: Results) -> str:
    """The two models of the pilot on two cores: after each stage, and at the gate."""
    stages = results.pilot["stages"]
    trained = {
        "theta": stages["theta"],
        "teacher that reads the answer": results.answer_teacher["stages"],
        "teacher that reads the worked solution": stages["teacher"],
    }
    rows = [
        [f"{who}, {number * TWO_CORES.stage_solutions} solutions", f"{one['loss']:.3f}", *share(one), f"{one['sound']}"]
        for who, of_model in trained.items()
        for number, one in enumerate(of_model, start=1)
    ]
    for who in ("theta", "teacher") if results.pilot["gate"] else ():
        one = results.pilot["gate"][who]
        rows.append([f"{who} at the gate", "", *share(one), f"{one['sound']}"])
    return table(["model", "loss, nats a token", "right", "95 % interval", "sound"], rows)


def pilot_cost_table(results: Results) -> str:
    """What the pilot's finished parts took."""
    rows = []
    for who, stages in results.pilot["stages"].items():
        if stages:
            sampling = sum(one["sampling_cpu_seconds"] for one in stages)
            training = sum(one["cpu_seconds"] for one in stages) - sampling
            seconds = sum(one["seconds"] for one in stages)
            solutions, texts = len(stages) * TWO_CORES.stage_solutions, sum(one["problems"] for one in stages)
            rows.append(
                [
                    f"{NAMES[who]} training: {solutions} solutions + {texts} texts",
                    f"{training:.0f} + {sampling:.0f}",
                    f"{training / solutions:.2f} a solution, {sampling / texts:.2f} a text",
                    f"{seconds:.0f}",
                ]
            )
    found: dict[str, list[dict[str, float]]] = {}
    for path, took in results.pilot["parts"].items():
        kind = next((name for name, beginning in PILOT_PARTS.items() if path.startswith(beginning)), None)
        if kind:
            found.setdefault(kind, []).append(took)
    for kind, parts in found.items():
        core, seconds = (sum(one[name] for one in parts) for name in ("cpu_seconds", "seconds"))
        rows.append([kind, f"{core:.0f}", f"{core / len(parts):.0f} a part, of {len(parts)}", f"{seconds:.0f}"])
    return table(["part", "core seconds", "core seconds each", "seconds on a shared machine"], rows)


def pilot_rows_table(results: Results) -> str:
    """The rows of the pilot's draw."""
    if not results.pilot_draws:
        return "Its draw is not finished."
    rows = []
    for name, source in SOURCES.items():
        one = results.pilot_draws[0]["data"][name]
        numbers = (f"{one[key]}" for key in ("rows", "right", "sound"))
        rows.append([source.label, *numbers, f"{one['kl']:.3f}", f"{one['alpha']:.2f}"])
    return table(["source", "rows", "right", "sound", "KL a token", "mean α"], rows)


def gate_table(results: Results) -> str:
    """SmolLM2 by what it reads."""
    rows = []
    for way, one in results.gate["ways"].items():
        title = WAYS[way]
        by_task = [f"{one['tasks'][task]['right']} of {one['tasks'][task]['problems']}" for task in TRAINED]
        rows.append([title, *share(one), *by_task, f"{one['sound']}"])
    return table(["SmolLM2 reads", "right", "95 % interval", *(f"`{task}`" for task in TRAINED), "sound"], rows)


def prediction_table(results: Results) -> str:
    """Seconds of each part on a GPU."""
    parts = predicted(Sizes(), Assumed())
    rows = [[name, f"{seconds:.0f}"] for name, seconds in parts.items()]
    return table(["part", "predicted seconds"], [*rows, ["together", f"{sum(parts.values()):.0f}"]])


def cost_table(results: Results) -> str:
    """Core hours of a draw on a CPU."""
    parts = extrapolated(results.gate, results.cost, Sizes())
    rows = [[name, f"{hours:.1f}"] for name, hours in parts.items()]
    return table(["part of one draw", "extrapolated core hours"], [*rows, ["together", f"{sum(parts.values()):.1f}"]])


def shown(gap: Mean | None) -> str:
    return "-" if gap is None else with_interval(gap, sign="+")


def draws_table(results: Results) -> str:
    """The sources: their rows, their students, and the differences that the protocol names."""
    draws = results.draws
    if not draws:
        return f"None of the {DRAWS} draws has been made."

    def accuracy(evaluated: dict[str, Any], names: tuple[str, ...]) -> float | None:
        counts = evaluated["tasks"]
        return counts and sum(100 * counts[name]["right"] / counts[name]["problems"] for name in names) / len(names)

    def mean(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{sum(known) / len(known):.1f}" if known else "-"

    gaps = {name: shown(gap) for name, gap in rivals(draws).items()}
    gaps |= {
        name: shown(gap and Mean(-gap.value, -gap.high, -gap.low, gap.p, gap.deviation, gap.count))
        for name, gap in controls(draws).items()
    }
    rows = [
        [
            "theta itself",
            "",
            "",
            *(mean([accuracy(draw["theta"], one) for draw in draws]) for one in (TRAINED, (UNTRAINED,))),
            "",
        ]
    ]
    for name, source in SOURCES.items():
        data = [draw["data"][name] for draw in draws]
        right = [100 * one["right"] / one["rows"] if one["rows"] else None for one in data]
        students = [draw["students"][name] for draw in draws]
        rows.append(
            [
                source.label,
                mean(right),
                f"{sum(one.get('kl', 0.0) for one in data) / len(data):.3f}",
                *(mean([accuracy(one, names) for one in students]) for names in (TRAINED, (UNTRAINED,))),
                "" if name == DEFAULT else gaps[name],
            ]
        )
    head = [
        "source",
        "rows right, %",
        "KL a token",
        "student, trained tasks, %",
        "untrained task, %",
        f"minus {SOURCES[DEFAULT].label}",
    ]
    return table(head, rows)


SECTIONS: dict[str, Callable[[Results], str]] = {
    "state": lambda results: f"{state(results)} {pilot_state(results)}",
    "gate": gate_table,
    "pilot": pilot_table,
    "pilot_rows": pilot_rows_table,
    "pilot_cost": pilot_cost_table,
    "prediction": prediction_table,
    "cost": cost_table,
    "draws": draws_table,
}


def written_into(text: str, results: Results) -> str:
    """The page with each of its marked sections as the results say it.

    Raises:
        ValueError: a section has no marker, or a marker no end.
    """
    for name, section in SECTIONS.items():
        text = with_section(text, name, section(results))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    results = Results.load()
    if parser.parse_args().write:
        PAGE.write_text(written_into(PAGE.read_text(), results))
        return
    for name, section in SECTIONS.items():
        print(f"{name}\n\n{section(results)}\n")


if __name__ == "__main__":
    main()
