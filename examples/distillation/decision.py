"""The decision of PROTOCOL.md, from the draws' primary endpoints and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillation import RESULTS
from distillation.means import Mean, mean_of
from distillation.protocol import CONSTANT, CONTROLS, DEFAULT, DRAWS, EPOCHS, FAR, LEVEL, RIVALS, SETS, SOURCES

Values = Mapping[str, Sequence[float]]
"""By source, a number for each draw, in the order of the draws."""


def load_draws(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The finished draws in their order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("draw-*.json"))]


def accuracy(evaluated: Mapping[str, Any], held_out: str, way: str = "greedy", what: str = "right") -> float:
    """A student's share of right (or sound) texts on one set, in per cent."""
    one = evaluated["sets"][held_out]
    return 100 * one[way][what] / one["problems"]


def primary(draw: Mapping[str, Any], source: str) -> float:
    """A source's primary endpoint in a draw: the mean of its six greedy accuracies, in per cent."""
    students = draw["students"][source]
    values = [accuracy(students[str(epochs)], held_out) for epochs in EPOCHS for held_out in SETS]
    return sum(values) / len(values)


def primary_values(draws: Sequence[Mapping[str, Any]]) -> Values:
    """All sources' primary endpoints."""
    return {name: [primary(draw, name) for draw in draws] for name in SOURCES}


def difference(values: Values, one: str, other: str) -> Mean:
    """The first source minus the second, within each draw, in points."""
    return mean_of([ours - theirs for ours, theirs in zip(values[one], values[other], strict=True)], LEVEL)


def holm(p_values: Mapping[str, float], level: float = LEVEL) -> set[str]:
    """The hypotheses that Holm's method rejects at this family-wise level."""
    rejected: set[str] = set()
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        if p_values[name] > level / (len(p_values) - place):
            break
        rejected.add(name)
    return rejected


@dataclass(frozen=True)
class Decision:
    """What follows from all draws."""

    recommended: str
    passing: frozenset[str]
    """The rivals that are better than the default."""
    teaches_better: bool
    """Whether the recommended source beats each control."""
    changes_the_default: bool
    """Whether a single request's default changes too."""


def decide(values: Values) -> Decision:
    """The rule.

    Args:
        values: primary endpoints, of `DRAWS` draws.

    Raises:
        ValueError: another number of draws. The decision is taken once, with all of them.
    """
    count = len(values[DEFAULT])
    if count != DRAWS:
        raise ValueError(f"{count} draws, and the decision is taken at {DRAWS}; make the missing ones with run.py")
    gains = {name: difference(values, name, DEFAULT) for name in RIVALS}
    rejected = holm({name: gain.p for name, gain in gains.items()})
    passing = frozenset(name for name in rejected if gains[name].value > 0)
    recommended = _recommended(values, gains, passing)
    return Decision(
        recommended,
        passing,
        teaches_better=all(difference(values, recommended, control).low > 0 for control in CONTROLS),
        changes_the_default=recommended != DEFAULT and gains[recommended].low > FAR,
    )


def _recommended(values: Values, gains: Mapping[str, Mean], passing: frozenset[str]) -> str:
    if not passing:
        return DEFAULT
    eligible = passing
    if CONSTANT in passing:  # a constant wins ties
        better = {name for name in passing - {CONSTANT} if difference(values, name, CONSTANT).low > 0}
        eligible = frozenset(better or {CONSTANT})
    return max(sorted(eligible), key=lambda name: gains[name].value)
