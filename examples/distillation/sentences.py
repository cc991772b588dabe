"""The pages' sentences, from the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillation.decision import difference
from distillation.findings import Results
from distillation.protocol import CONTROLS, DEFAULT, DRAWS, RIVALS, SOURCES
from distillation.tables import number, with_interval

CONTROL_NAMES = {
    "teacher": "the teacher's own text",
    "teacher_best_theta": "the best of four of the teacher's texts by theta's likelihood",
    "teacher_best_log_z": "the best of four by log Z",
    "theta_right_1": "theta's own right answers",
    "theta_right_4": "theta's first right answer of four",
}


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
        claim = "**Mixing token by token helps training here:**"
    else:
        claim = "**Mixing token by token is not shown to help training:**"
    claim = f"{claim} {against_controls(results, found.recommended)}."
    return f"{first} {claim} {DRAWS} draws, by [a rule written down first](PROTOCOL.md)."


def listed(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def against_controls(results: Results, source: str) -> str:
    """Whether a source's students are better than those of each control, with the differences in points."""
    gains = {name: difference(results.primary, source, name) for name in CONTROLS}
    verbs = {
        "are better than": [name for name, gain in gains.items() if gain.low > 0],
        "cannot be told from": [name for name, gain in gains.items() if gain.low <= 0 <= gain.high],
        "are worse than": [name for name, gain in gains.items() if gain.high < 0],
    }
    said = {}
    for name, gain in gains.items():
        middle, low, high = (number(value, sign="+") for value in (gain.value, gain.low, gain.high))
        said[name] = f"{CONTROL_NAMES[name]} ({middle}, {low} to {high})"
    clauses = [f"{verb} those of {listed([said[name] for name in names])}" for verb, names in verbs.items() if names]
    return f"students of {SOURCES[source].label} {'; they '.join(clauses)}"


def evidence(results: Results) -> str:
    """What the project's README says first: whether q* is shown to teach better."""
    experiment = "[an experiment by a rule written down first](examples/distillation/README.md)"
    if results.decision is None:
        return (
            "**Not shown to help training.** Whether students trained on q\\* become better than those trained on the "
            f"teacher's own text, or on theta's own right answers, is not decided: {experiment} has {len(results.draws)} of "
            f"{DRAWS} draws. Nothing is known about large models."
        )
    first = "**Shown to help training, on one pair of small models:**"
    if not results.decision.teaches_better:
        first = "**Not shown to help training:**"
    return (
        f"{first} {experiment} trained copies of theta on texts from q\\* and on others, for one pair of small models. Judged "
        f"by accuracy (in brackets the difference in points, and its 95 % interval over {DRAWS} draws), "
        f"{against_controls(results, results.decision.recommended)}. Nothing is known about large models."
    )


def recommendation(results: Results) -> str:
    """What the page about parameters says of the methods for training data."""
    experiment = "[experiment](../examples/distillation/README.md) by a rule that was written down first"
    if results.decision is None:
        return (
            f"Whether rows of one or the other *teach* better is not decided. An {experiment} has {len(results.draws)} of "
            f"{DRAWS} draws. It will say, for `entropy`, `fixed` and `kl_budget` against `kl_symmetry`."
        )
    best = results.decision.recommended
    said = f"**{SOURCES[best].label} is recommended**"
    if best == DEFAULT:
        said = "none was shown to be better than `kl_symmetry`"
    gains = [
        f"{SOURCES[name].label} {with_interval(difference(results.primary, name, DEFAULT), sign='+')}"
        for name in RIVALS
    ]
    return (
        f"Which rows *teach* better: an {experiment} says that {said}. Points of accuracy more than the students of "
        f"`kl_symmetry`: {listed(gains)} (95 % intervals over {DRAWS} draws)."
    )


def pilots_say(results: Results) -> str:
    """The pilots' other outcomes in a sentence."""
    lower = results.pilot["validation_right"]["by_places_lower"]
    bounds = results.pilot["epsilons"]
    scores = ", ".join(f"{places}: {100 * score:.1f} %" for places, score in lower.items())
    return (
        f"ε is {bounds['kl_budget']:.4f} nats and ε′ {bounds['kl_budget_matched']:.2f}. "
        f"Right on validation with 16 epochs, by the number of places by which the rates are lowered: {scores}."
    )


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
