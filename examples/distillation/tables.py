"""The pages' tables, from the results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from distillation.decision import accuracy, difference, holm
from distillation.findings import SHOWN, Results
from distillation.means import Mean, mean_of
from distillation.protocol import CONTROLS, DEFAULT, DRAWS, EPOCHS, RIVALS, SETS, SOURCES

SET_TITLES = {"stories": "stories (trained on)", "longer": "longer (shifted)", "sorting": "sorting (not trained on)"}


def table(title: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(title)} |", f"|{' --- |' * len(title)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float, digits: int = 1, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no "-0.0"


def with_interval(found: Mean, digits: int = 1, sign: str = "") -> str:
    """A mean with its interval over draws; without one where there is a single draw."""
    values = (found.value, found.low, found.high)
    middle, *ends = (number(value, digits, sign) for value in values if not math.isinf(value))
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
