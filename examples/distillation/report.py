"""The page's tables and plots, from the files in results/ and nothing else.

python examples/distillation/report.py             prints them
python examples/distillation/report.py --write     puts them between the markers of the pages, and draws the plots
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distillation import HERE, RESULTS
from distillation.decision import Decision, Values, accuracy, decide, difference, holm, load_draws, primary_values
from distillation.means import Mean, mean_of
from distillation.protocol import CONTROLS, DEFAULT, DRAWS, EPOCHS, RIVALS, SETS, SOURCES
from distillation.summary import summary

PAGES = (HERE / "README.md", HERE / "TABLES.md")
BEGIN = "<!-- {name}: written by report.py -->"
END = "<!-- {name}: end -->"
SHOWN = ("theta_right_1", "teacher", "fixed_0.5", "kl_symmetry", "entropy")
"""The sources of the page's table, besides theta itself and the best other."""
SET_TITLES = {"stories": "stories (trained on)", "longer": "longer (shifted)", "sorting": "sorting (not trained on)"}


@dataclass(frozen=True)
class Results:
    """Everything that the page is made of."""

    draws: list[dict[str, Any]]
    pilot: dict[str, Any] | None
    """None until it is finished."""
    simulation: dict[str, Any]

    @classmethod
    def load(cls, folder: Path = RESULTS) -> Results:
        pilot = folder / "pilot.json"
        return cls(
            load_draws(folder),
            json.loads(pilot.read_text()) if pilot.exists() else None,
            json.loads((folder / "simulation.json").read_text()),
        )

    @cached_property
    def primary(self) -> Values:
        return primary_values(self.draws)

    @property
    def decision(self) -> Decision | None:
        """None before all draws exist."""
        return decide(self.primary) if len(self.draws) == DRAWS else None

    def students(self, source: str, held_out: str, way: str = "greedy", what: str = "right") -> list[float]:
        """For each draw the accuracy of a source's students on a set, in per cent: the mean of the budgets."""
        return [
            sum(accuracy(draw["students"][source][str(epochs)], held_out, way, what) for epochs in EPOCHS) / len(EPOCHS)
            for draw in self.draws
        ]

    def theta(self, held_out: str, way: str = "greedy", what: str = "right") -> list[float]:
        """The same of theta before any training."""
        return [accuracy(draw["theta"], held_out, way, what) for draw in self.draws]

    def data(self, source: str, name: str) -> list[float]:
        """For each draw a measure of a source's rows; counts as a share of the rows, in per cent."""
        measures = [draw["data"][source] for draw in self.draws]
        if name in ("right", "sound", "cut_off"):
            return [100 * one[name] / one["rows"] for one in measures]
        return [one[name] for one in measures]

    @property
    def best_other(self) -> str:
        """Of the sources that the page's table does not have, the one with the best primary endpoint."""
        others = [name for name in SOURCES if name not in SHOWN]
        return max(others, key=lambda name: sum(self.primary[name]))


def table(title: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(title)} |", f"|{' --- |' * len(title)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}"


def with_interval(found: Mean, digits: int = 1, sign: str = "") -> str:
    """A mean with its interval over draws; without one where there is a single draw."""
    texts = [f"{value:{sign}.{digits}f}" for value in (found.value, found.low, found.high) if not math.isinf(value)]
    middle, *ends = (f"{'+' * bool(sign)}{0:.{digits}f}" if float(text) == 0 else text for text in texts)  # no "-0.0"
    return f"{middle} ({' to '.join(ends)})" if ends else middle


def points(found: Mean) -> str:
    """A difference in points; bold where its interval leaves zero out, once all draws are there."""
    text = with_interval(found, sign="+")
    return f"**{text}**" if found.count == DRAWS and (found.low > 0 or found.high < 0) else text


def share(values: Sequence[float]) -> str:
    """A share in per cent, whose interval of means may not pass what a share can be."""
    found = mean_of(values)
    ends = {} if math.isinf(found.low) else {"low": max(0.0, found.low), "high": min(100.0, found.high)}
    return with_interval(replace(found, **ends))


def gaps(ours: Sequence[float], theirs: Sequence[float]) -> Mean:
    return mean_of([one - other for one, other in zip(ours, theirs, strict=True)])


def status(results: Results) -> str:
    """The page's first sentences: what was decided, or that nothing is."""
    count = len(results.draws)
    if results.decision is None:
        text = (
            f"**{count} of {DRAWS} draws: no decision yet.** [The rule](PROTOCOL.md) is applied once, to {DRAWS} draws."
        )
        if count == 1:
            return f"{text} One draw has no interval: the figures below are not evidence of anything."
        return f"{text} What is below are estimates of an unfinished experiment." if count else text
    found = results.decision
    label = SOURCES[found.recommended].label
    gain = with_interval(difference(results.primary, found.recommended, DEFAULT))
    if found.recommended == DEFAULT:
        first = (
            "**No other way to choose alpha is shown to be better for training data than KL symmetry**, the default."
        )
    else:
        first = (
            f"**{label} is recommended for training data:** its students are {gain} points better than KL symmetry's."
        )
    if found.teaches_better:
        claim = f"Students of {label} are better than those of the teacher's own text and of theta's own right answers."
    else:
        claim = (
            "**Mixing token by token is not shown to help training:** against the teacher's own text, the best of four, or "
            "theta's own right answers, a difference cannot be told from zero or is below it."
        )
    return f"{first} {claim} {DRAWS} draws, by [a rule written down first](PROTOCOL.md)."


def main_table(results: Results) -> str:
    """The seven rows."""

    def row(label: str, source: str | None) -> list[str]:
        cells = ["", "", ""]
        if source is not None:
            cells = [
                *(share(results.data(source, one)) for one in ("right", "sound")),
                number(sum(results.data(source, "kl")) / len(results.draws), 3),
            ]
        for held_out in SETS:
            ours = results.theta(held_out) if source is None else results.students(source, held_out)
            is_teacher = source == "teacher"
            cells.append(
                with_interval(mean_of(ours))
                if is_teacher
                else points(gaps(ours, results.students("teacher", held_out)))
            )
        return [label, *cells]

    rows = [row("*theta, not trained*", None), *(row(SOURCES[name].label, name) for name in SHOWN)]
    rows.append(row(f"best other: {SOURCES[results.best_other].label}", results.best_other))
    title = ["rows of", "right, %", "sound, %", "KL from theta", *SET_TITLES.values()]
    return table(title, rows)


def rivals(results: Results) -> str:
    """What the decision looks at: each rival against the default, and the recommended source against each control."""
    found = {name: difference(results.primary, name, DEFAULT) for name in RIVALS}
    passing = holm({name: one.p for name, one in found.items()})
    decision = results.decision
    recommended = decision.recommended if decision else DEFAULT
    rows = [
        [
            f"{SOURCES[name].label} minus KL symmetry",
            points(one),
            number(one.deviation) if one.count > 1 else "",
            f"{one.p:.2g}" if one.count > 1 else "",
            ("yes" if name in passing and one.value > 0 else "no") if decision else "",
        ]
        for name, one in found.items()
    ]
    rows += [
        [
            f"{SOURCES[recommended].label} minus {SOURCES[name].label}",
            points(one := difference(results.primary, recommended, name)),
            number(one.deviation) if one.count > 1 else "",
            f"{one.p:.2g}" if one.count > 1 else "",
            ("yes" if one.low > 0 else "no") if decision else "",
        ]
        for name in CONTROLS
    ]
    return table(["primary endpoint", "points", "deviation over draws", "p", "shown by the rule"], rows)


def data_table(results: Results) -> str:
    """All sources' rows."""
    rows = []
    for name, source in SOURCES.items():
        means = {one: mean_of(results.data(name, one)) for one in ("kl", "entropy", "theta_logprob", "alpha")}
        problems = sum(results.data(name, "problems")) / len(results.draws)
        rows.append(
            [
                source.label,
                f"{problems:.0f}",
                *(share(results.data(name, one)) for one in ("right", "sound")),
                *(with_interval(means[one], 4) for one in ("kl", "entropy", "theta_logprob")),
                number(means["alpha"].value, 2),
            ]
        )
    title = ["rows of", "problems", "right, %", "sound, %", "KL from theta", "entropy", "log π_θ a token", "mean alpha"]
    return table(title, rows)


def students_table(results: Results, way: str, what: str) -> str:
    """All sources' students, one column for each set and budget."""
    columns = [(held_out, epochs) for held_out in SETS for epochs in EPOCHS]
    rows = [
        ["*theta, not trained*", *(with_interval(mean_of(results.theta(one, way, what))) for one, _ in columns), ""]
    ]
    for name, source in SOURCES.items():
        cells = [
            with_interval(
                mean_of([accuracy(draw["students"][name][str(epochs)], held_out, way, what) for draw in results.draws])
            )
            for held_out, epochs in columns
        ]
        endpoint = "" if (way, what) != ("greedy", "right") else with_interval(mean_of(results.primary[name]))
        rows.append([source.label, *cells, endpoint])
    title = ["rows of", *(f"{held_out}, {epochs} epochs" for held_out, epochs in columns)]
    return table([*title, "primary endpoint"], rows)


def rates_table(results: Results) -> str:
    """The learning rates that the pilots fixed, and the temperatures at which the students were sampled."""
    rows = []
    for name, source in SOURCES.items():
        rates = results.pilot["learning_rates"][name]
        tried = results.pilot["validation_right"]["by_learning_rate"][name]
        means = [
            sum(draw["students"][name][str(epochs)]["temperature"] for draw in results.draws)
            / max(1, len(results.draws))
            for epochs in EPOCHS
        ]
        rows.append(
            [
                source.label,
                *(f"{rates[str(epochs)]:g}" for epochs in EPOCHS),
                ", ".join(f"{rate}: {100 * score:.1f}" for rate, score in tried.items()),
                *((number(mean, 2) for mean in means) if results.draws else [""] * len(EPOCHS)),
            ]
        )
    title = [
        "rows of",
        *(f"rate, {epochs} epochs" for epochs in EPOCHS),
        "right on validation, %, by rate with 4 epochs",
    ]
    return table([*title, *(f"temperature, {epochs} epochs" for epochs in EPOCHS)], rows)


def pilots_say(results: Results) -> str:
    """The pilots' other outcomes in a sentence."""
    lower = results.pilot["validation_right"]["by_places_lower"]
    bounds = results.pilot["epsilons"]
    scores = ", ".join(f"{places}: {100 * score:.1f} %" for places, score in lower.items())
    return (
        f"ε is {bounds['kl_budget']:.4f} nats and ε′ {bounds['kl_budget_matched']:.2f}. "
        f"Right on validation with 16 epochs, by the number of places by which the rates are lowered: {scores}."
    )


def simulation_table(results: Results) -> str:
    """How often the decision finds what, for each deviation over draws."""
    titles = {
        "entropy_passes": "entropy passes",
        "any_other_passes": "another passes",
        "teaches_better": "claimed to teach better",
        "covered": "interval covers",
    }
    scenarios = results.simulation["scenarios"]
    deviations = list(next(iter(scenarios.values())))
    rows = [
        [truth, *(" / ".join(f"{100 * found[deviation][name]:.1f}" for deviation in deviations) for name in titles)]
        for truth, found in scenarios.items()
    ]
    said = (
        f"Where such a difference deviates by {' / '.join(deviations)} points over draws. "
        f"{results.simulation['experiments']:,} experiments of {results.simulation['draws']} draws for each number."
    )
    return f"{table(['truth', *(f'{one}, %' for one in titles.values())], rows)}\n\n{said}"


def cpu_seconds(pieces: Any) -> float:
    """What all pieces in a structure took."""
    if isinstance(pieces, dict):
        return pieces.get("cpu_seconds", 0.0) + sum(map(cpu_seconds, pieces.values()))
    return 0.0


def origin(results: Results) -> str:
    """Where the figures come from."""
    last = results.draws[-1]
    days = sorted({draw["date"] for draw in results.draws})
    days = days[:1] + days[1:][-1:]
    minutes = sum(map(cpu_seconds, results.draws)) / 60 / len(results.draws)
    return (
        f"{len(results.draws)} of {DRAWS} draws, {' to '.join(days)}. {last['machine']['cpu']}, torch "
        f"{last['versions']['torch']}, transformers {last['versions']['transformers']}. A draw takes {minutes:.0f} minutes of "
        "one core. Files: `results/draw-NN.json`."
    )


def plots(_: Results) -> str:
    """The two pictures that `plots.draw` leaves beside the results."""
    return "![sound rows against the KL from theta](results/data.png)\n\n![students](results/students.png)"


NEED_DRAWS = {
    "plots": plots,
    "main": main_table,
    "rivals": rivals,
    "data": data_table,
    "greedy": lambda results: students_table(results, "greedy", "right"),
    "sampled": lambda results: students_table(results, "sampled", "right"),
    "sound": lambda results: students_table(results, "greedy", "sound"),
    "origin": origin,
}
NEED_PILOT = {"rates": rates_table, "pilots": pilots_say}
SECTIONS = {
    "status": status,
    **NEED_DRAWS,
    **NEED_PILOT,
    "simulation": simulation_table,
}


def render(results: Results, section: str) -> str:
    """One section as the pages have it."""
    if section in NEED_DRAWS and not results.draws:
        return "No draw is finished."
    if section in NEED_PILOT and results.pilot is None:
        return "The pilot is not finished."
    return SECTIONS[section](results)


def written_into(text: str, results: Results) -> str:
    """A page with each of its marked sections as the results say it.

    Raises:
        ValueError: a marker has no end.

    """
    for name in SECTIONS:
        begin, end = BEGIN.format(name=name), END.format(name=name)
        if begin not in text:
            continue
        head, rest = text.split(begin, 1)
        if end not in rest:
            raise ValueError(f"a page has {begin!r} without {end!r} after it; add it")
        text = f"{head}{begin}\n{render(results, name)}\n{end}{rest.split(end, 1)[1]}"
    return text


def write(folder: Path = RESULTS) -> None:
    """Put the results into the pages and into summary.json, and draw the plots."""
    from distillation.plots import draw  # needs matplotlib, the tables do not

    results = Results.load(folder)
    (folder / "summary.json").write_text(json.dumps(summary(results.draws), indent=1) + "\n")
    for page in PAGES:
        page.write_text(written_into(page.read_text(), results))
    if results.draws:
        draw(results, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if given.write:
        write()
        return
    results = Results.load()
    for section in SECTIONS:
        print(f"{section}\n\n{render(results, section)}\n")


if __name__ == "__main__":
    main()
