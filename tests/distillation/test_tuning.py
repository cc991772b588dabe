"""The learning rates follow from the pilots by the protocol's rule, and those of the page are what the pilots say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from distillation import tuning
from distillation.protocol import LEARNING_RATES


def search(score: Callable[[float], float]) -> tuple[float, set[float]]:
    """The best rate by the rule, and the rates tried."""
    tried: dict[float, float] = {}
    while wanted := tuning.next_rates(tried):
        assert not set(wanted) & set(tried)
        tried |= {rate: score(rate) for rate in wanted}
    return tuning.best(tried), set(tried)


FIRST = {3e-5, 1e-4, 3e-4}


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-5, FIRST | {1e-5}),
        (3e-5, FIRST | {1e-5}),
        (1e-4, FIRST),
        (3e-4, FIRST | {1e-3}),
        (1e-3, FIRST | {1e-3, 3e-3}),
        (3e-3, FIRST | {1e-3, 3e-3}),
    ],
)
def test_the_best_of_the_list_is_found(best: float, tried: set[float]) -> None:
    """Where accuracy rises and falls once, without trying more than one rate beyond the best."""
    place = LEARNING_RATES.index(best)
    assert search(lambda rate: -abs(LEARNING_RATES.index(rate) - place)) == (best, tried)


def test_of_equals_the_smallest() -> None:
    assert search(lambda rate: 0.5)[0] == 1e-5


def test_rates_are_lowered_by_places() -> None:
    assert tuning.lowered(3e-4, 0) == 3e-4
    assert tuning.lowered(3e-4, 2) == 3e-5
    assert tuning.lowered(3e-5, 4) == 1e-5


@pytest.mark.parametrize(("best", "tried"), [(0, 2), (1, 3), (2, 4), (5, 6)])
def test_places_go_on_while_more_are_better(best: int, tried: int) -> None:
    scores: dict[int, float] = {}
    while wanted := tuning.next_places(scores):
        scores |= {places: -abs(places - best) for places in wanted}
    assert tuning.best(scores) == best
    assert len(scores) == tried
