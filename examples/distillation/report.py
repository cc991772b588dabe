"""README's tables, from the result files and nothing else.

python examples/distillation/report.py             prints them
python examples/distillation/report.py --write     puts them between README's markers, and draws the plots
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distillation import HERE
from distillation.intervals import bootstrap_difference, t_interval

README = HERE / "README.md"
RESULTS = HERE / "results"
BEGIN = "<!-- {name}: written by report.py -->"
END = "<!-- {name}: end -->"

REFERENCE = "kl_symmetry"
ALSO_COMPARED = (("entropy", "teacher"),)
"""Over several draws, beside the reference against each other source."""
SETS = {"stories": "stories (500)", "longer": "longer (300)", "sorting": "sorting (300)"}
WAYS = ("greedy", "sampled")
COLUMNS = [(held_out, way) for held_out in SETS for way in WAYS]
COLUMN_TITLES = [f"{SETS[held_out]}, {way}" for held_out, way in COLUMNS]


def marks(runs: Iterable[dict[str, Any]], held_out: str, way: str, what: str = "right") -> list[str]:
    """For each run, a string of 0 and 1 over the problems."""
    return [run["end"][held_out][way][what] for run in runs]


def share(string: str) -> float:
    """The share of ones among a run's marks, in [0, 1]."""
    return string.count("1") / len(string)


def summarised(result: dict[str, Any]) -> dict[str, Any]:
    """A result without the marks of single problems: shares in their place, and the differences that need the marks.

    Adds `problems`, the number in each held-out set, and `differences`, of the reference from each other source and from
    theta `before` training: by column, the difference with its interval.
    """

    def of_run(run: dict[str, Any]) -> dict[str, Any]:
        ends = {
            held_out: {way: {what: share(string) for what, string in one.items()} for way, one in by_way.items()}
            for held_out, by_way in run["end"].items()
        }
        return run | {"end": ends}

    students, before = result["students"], result["before"]
    found = result | {
        "problems": {held_out: len(one["greedy"]["right"]) for held_out, one in before[0]["end"].items()},
        "before": list(map(of_run, before)),
        "students": {name: list(map(of_run, runs)) for name, runs in students.items()},
    }
    if REFERENCE in students:
        others = {"before": before} | {name: runs for name, runs in students.items() if name != REFERENCE}
        found["differences"] = {
            name: [
                bootstrap_difference(marks(students[REFERENCE], *column), marks(runs, *column)) for column in COLUMNS
            ]
            for name, runs in others.items()
        }
    if "second_round" in result:
        second_students = {
            name: {kind: list(map(of_run, runs)) for kind, runs in by_kind.items()}
            for name, by_kind in result["second_round"]["students"].items()
        }
        found["second_round"] = result["second_round"] | {"students": second_students}
    return found


def shares(runs: Iterable[dict[str, Any]], held_out: str, way: str, what: str = "right") -> list[float]:
    """For each run of a summarised result, the share of the problems."""
    return [run["end"][held_out][way][what] for run in runs]


def percent(values: Sequence[float], digits: int = 1) -> str:
    """A share with its interval, in per cent."""
    middle, low, high = (100 * value for value in values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def points(values: Sequence[float]) -> str:
    """A difference of shares with its interval, in points; bold where the interval leaves zero out."""
    middle, low, high = (100 * value for value in values)
    text = f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def table(title: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(title)} |", f"|{' --- |' * len(title)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def origin(result: dict[str, Any]) -> list[str]:
    """Where the figures come from."""
    form, machine, versions = result["form"], result["machine"], result["versions"]
    recipe = form["recipe"]
    return [
        f"{form['problems']} training problems, one completion of each; {recipe['steps']} steps of {recipe['tokens_per_step']} "
        f"completion tokens; {len(form['seeds'])} seeds. {machine['cpu']}, {machine['cores']} cores, the engine in "
        f"{machine['kernels']}; vLLM {versions['vllm']}, torch {versions['torch']}, transformers {versions['transformers']}; "
        f"{result['date']}; load {result['load_before'][0]:.1f} before and {result['load_after'][0]:.1f} after; "
        f"{result['seconds_of_all_pieces'] / 60:.0f} minutes of one core; `results/{form['name']}.json`.",
        "",
    ]


def data(result: dict[str, Any]) -> list[str]:
    """What each source's rows are like."""
    rows = []
    for name, one in result["data"].items():
        weights = one.get("importance")
        rows.append(
            [
                result["labels"][name],
                str(one["rows"]),
                percent([one["right"] / one["rows"], *one["right_interval"]]),
                f"{100 * one['right_with_right_steps'] / one['rows']:.1f}",
                f"{one['theta_logprob'][0]:.3f} ({one['theta_logprob'][1]:.3f} to {one['theta_logprob'][2]:.3f})",
                f"{one['teacher_logprob'][0]:.3f}",
                f"{one['entropy'][0]:.3f}" if "entropy" in one else "",
                f"{one['kl_from_theta'][0]:.3f}" if "kl_from_theta" in one else "",
                f"{one['distinct_4_grams']:.3f}",
                f"{100 * weights['effective_share_of_tokens']:.0f}" if weights else "",
                f"{100 * weights['effective_share_of_completions']:.1f}" if weights else "",
                f"{one['alpha']['mean']:.2f}" if "alpha" in one else "",
            ]
        )
    title = ["source", "rows", "right, %", "with right steps, %", "log π_θ a token", "log π_t a token", "entropy of q"]
    title += ["KL(q‖π_θ)", "distinct 4-grams", "effective tokens, %", "effective completions, %", "mean alpha"]
    differences = [
        max(one["largest_difference_from_records"].values())
        for one in result["data"].values()
        if "largest_difference_from_records" in one
    ]
    said = f"The engine's records of these tokens differ from transformers in float64 by at most {max(differences):.1g} nats."
    return [*table(title, rows), said, ""]


def students(result: dict[str, Any]) -> list[str]:
    """What the students get right."""

    def row(label: str, rate: str, runs: Sequence[dict[str, Any]]) -> list[str]:
        cells = [percent(t_interval(shares(runs, *column))) for column in COLUMNS]
        sound = shares(runs, "stories", "greedy", "sound")
        return [label, rate, *cells, f"{100 * sum(sound) / len(sound):.1f}"]

    rows = [row("*theta, before training*", "", result["before"])]
    for name, runs in result["students"].items():
        rows.append(row(result["labels"][name], f"{result['learning_rates'][name]:g}", runs))
    title = ["trained on", "learning rate", *COLUMN_TITLES]
    return table([*title, "stories, greedy, with right steps"], rows)


def differences(result: dict[str, Any]) -> list[str]:
    """Students of q* against the others."""
    if "differences" not in result:
        return []
    labels = {"before": "*theta, before training*"} | result["labels"]
    rows = [[labels[name], *map(points, columns)] for name, columns in result["differences"].items()]
    title = ["q*, KL symmetry, minus", *COLUMN_TITLES]
    return table(title, rows)


def rates(result: dict[str, Any]) -> list[str]:
    """How each learning rate did on the validation problems."""
    tuning = result["tuning"]
    title = ["source", *next(iter(tuning.values()))]
    rows = []
    for name, by_rate in tuning.items():
        best = f"{result['learning_rates'][name]:g}"
        rows.append(
            [
                result["labels"][name],
                *(f"**{100 * v:.1f}**" if rate == best else f"{100 * v:.1f}" for rate, v in by_rate.items()),
            ]
        )
    return table(title, rows)


def second(result: dict[str, Any]) -> list[str]:
    """The second round: each source's student is theta, and learns from new rows or from the old ones again."""
    if "second_round" not in result:
        return []
    rows, found = [], result["second_round"]
    kinds = {"new": "new rows", "again": "the first round's rows again"}
    for name, by_kind in found["students"].items():
        one = found["data"][name]
        first = result["students"][name][:1]
        start = [f"{100 * shares(first, *column)[0]:.1f}" for column in COLUMNS]
        rows.append([f"{result['labels'][name]}: the student of round one", "", *start])
        for kind, runs in by_kind.items():
            right = f"{100 * one['right'] / one['rows']:.1f}" if kind == "new" else ""
            rows.append(
                [f"… {kinds[kind]}", right, *(percent(t_interval(shares(runs, *column))) for column in COLUMNS)]
            )
    title = ["trained on", "new rows right, %", *COLUMN_TITLES]
    return table(title, rows)


def draws(results: dict[str, dict[str, Any]]) -> list[str]:
    """The sources that were drawn more than once, over all draws of problems and rows.

    A draw counts once, with the mean of its students. Differences are between the two sources of one draw.
    """
    by_draw = [results[name] for name in results if name == "full" or "_draw_" in name]
    first = results["full"]
    names = [name for name in first["students"] if all(name in result["students"] for result in by_draw)]
    if len(by_draw) < 2 or REFERENCE not in names:
        return []

    def means(result: dict[str, Any], name: str) -> list[float]:
        values = [shares(result["students"][name], *column) for column in COLUMNS]
        return [sum(value) / len(value) for value in values]

    found = {name: [means(result, name) for result in by_draw] for name in names}
    rows = [
        [first["labels"][name], *(percent(t_interval(cells)) for cells in zip(*found[name], strict=True))]
        for name in names
    ]
    others = [(REFERENCE, name) for name in names if name != REFERENCE]
    for name, other in others + [pair for pair in ALSO_COMPARED if set(pair) <= set(names)]:
        gaps = [
            [ours - theirs for ours, theirs in zip(*pair, strict=True)]
            for pair in zip(found[name], found[other], strict=True)
        ]
        cells = [points(t_interval(cell)) for cell in zip(*gaps, strict=True)]
        rows.append([f"{first['labels'][name]}, minus {first['labels'][other]}", *cells])
        each = (", ".join(f"{100 * value:+.1f}" for value in cell) for cell in zip(*gaps, strict=True))
        rows.append(["… in each draw", *each])
    return table([f"{len(by_draw)} draws", *COLUMN_TITLES], rows)


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "origin": origin,
    "data": data,
    "students": students,
    "differences": differences,
    "rates": rates,
    "second": second,
}


def render(result: dict[str, Any], section: str) -> str:
    """One table of one result, as README has it."""
    return "\n".join(SECTIONS[section](result)).rstrip()


def written_into(text: str, results: dict[str, dict[str, Any]]) -> str:
    """README with each of its tables, marked FORM-SECTION, as the results say it.

    Raises:
        ValueError: a marker has no end, or README shows none of the results.

    """
    tables = {f"{form}-{section}": render(result, section) for form, result in results.items() for section in SECTIONS}
    if "full" in results:
        tables["draws"] = "\n".join(draws(results)).rstrip()
    shown = 0
    for name, said in tables.items():
        begin, end = BEGIN.format(name=name), END.format(name=name)
        if begin not in text:
            continue
        head, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"README has {begin!r} without {end!r} after it")
        text = f"{head}{begin}\n{said}\n{end}{rest.split(end, 1)[1]}"
        shown += 1
    if not shown:
        raise ValueError("README shows none of the results")
    return text


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The results by the name of their form."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def write(folder: Path = RESULTS) -> None:
    """Put the results of a folder into README, and draw the plots that it shows beside them."""
    from distillation.plots import draw  # needs matplotlib, the tables do not

    results = load(folder)
    text = written_into(README.read_text(), results)
    README.write_text(text)
    for form, result in results.items():
        if f"]({RESULTS.name}/{form}-" in text:
            draw(result, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    results = load(given.results)
    if not given.write:
        for result in results.values():
            for section in SECTIONS:
                print(f"{section}\n\n{render(result, section)}\n")
        return
    write(given.results)


if __name__ == "__main__":
    main()
