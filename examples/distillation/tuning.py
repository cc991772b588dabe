"""Which learning rates are tried next, and which is the best of those tried: the rule of PROTOCOL.md."""

from __future__ import annotations

from collections.abc import Mapping

from distillation.protocol import LEARNING_RATES, TRIED_FIRST


def best(scores: Mapping[float, float]) -> float:
    """The rate (or number of places) with the largest score, of equals the smallest."""
    return min(scores, key=lambda one: (-scores[one], one))


def next_rates(scores: Mapping[float, float]) -> list[float]:
    """The learning rates still to be tried with few epochs; none when the best is found.

    Args:
        scores: of the rates tried so far, the mean accuracy.
    """
    if not scores:
        return list(TRIED_FIRST)
    found = best(scores)
    place = LEARNING_RATES.index(found)
    smaller = LEARNING_RATES[max(0, place - 1) : place] if found == min(scores) else ()
    larger = LEARNING_RATES[place + 1 : place + 2] if found == max(scores) else ()
    return [*smaller, *larger]


def lowered(rate: float, places: int) -> float:
    """The rate so many places lower in the list, or the lowest."""
    return LEARNING_RATES[max(0, LEARNING_RATES.index(rate) - places)]


def next_places(scores: Mapping[int, float]) -> list[int]:
    """By how many places the rates are still to be lowered with many epochs; none when the best is found.

    Args:
        scores: of the numbers tried so far, the mean accuracy.
    """
    if not scores:
        return [0, 1]
    largest = max(scores)
    return [largest + 1] if best(scores) == largest and largest + 1 < len(LEARNING_RATES) else []
