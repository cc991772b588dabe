"""The pilot draws, which fix the KL bounds and the learning rates and are then thrown away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from distillation import tuning, work
from distillation.matched_budget import logprobs_along, matched
from distillation.pieces import piece, read
from distillation.protocol import CONSTANT, EPOCHS, LOWERED_ON, PILOTS, SOURCES, Sizes
from distillation.work import Draw, Training

Starmap = Callable[[Callable[..., Any], Iterable[tuple]], list[Any]]
"""Calls a function with each of the arguments, in processes of their own or not."""
BOUNDED = tuple(name for name, source in SOURCES.items() if source.drawn == "kl_budget")


def mean_kl(draws: list[Draw]) -> float:
    """The mean KL from theta of the constant alpha's tokens, in nats."""
    counts = [read(draw.rows_of(CONSTANT))["measures"] for draw in draws]
    return sum(one["kl"] * one["tokens"] for one in counts) / sum(one["tokens"] for one in counts)


def bounds(draws: list[Draw]) -> dict[str, float]:
    """The bound of the KL for each source that has one, in nats, once the constant alpha's rows are there."""

    def compute() -> dict[str, Any]:
        first, mean = draws[0], mean_kl(draws)
        texts = work.texts_of(first, CONSTANT)[: first.sizes.matched_on]
        matching = matched(*logprobs_along(work.models(), texts, first.training_problems()), mean)
        return {name: matching if SOURCES[name].is_matched else mean for name in BOUNDED}

    found = piece(draws[0].place / "bounds.json", compute)
    return {name: found[name] for name in BOUNDED}


def scores_of(starmap: Starmap, draws: list[Draw], wanted: list[tuple[str, int, float]]) -> list[float]:
    """For each source, number of epochs and learning rate the accuracy on validation, the mean over the pilots."""
    jobs = [(Training(draw, *one),) for one in wanted for draw in draws]
    print(f"{len(jobs)} students of the pilots", flush=True)
    found = iter(starmap(work.tune, jobs))
    return [sum(next(found)["score"] for _ in draws) / len(draws) for _ in wanted]


def few_epochs(draws: list[Draw], starmap: Starmap) -> dict[str, dict[float, float]]:
    """Each source's accuracies by learning rate, for the rates that the rule tries."""
    tried: dict[str, dict[float, float]] = {name: {} for name in SOURCES}
    while wanted := [(name, EPOCHS[0], rate) for name in tried for rate in tuning.next_rates(tried[name])]:
        for (name, _, rate), score in zip(wanted, scores_of(starmap, draws, wanted), strict=True):
            tried[name][rate] = score
    return tried


def many_epochs(draws: list[Draw], rates: Mapping[str, float], starmap: Starmap) -> dict[int, float]:
    """The accuracies by the number of places by which all rates are lowered."""
    tried: dict[int, float] = {}
    while wanted := tuning.next_places(tried):
        jobs = [(name, EPOCHS[1], tuning.lowered(rates[name], places)) for places in wanted for name in LOWERED_ON]
        found = iter(scores_of(starmap, draws, jobs))
        tried |= {places: sum(next(found) for _ in LOWERED_ON) / len(LOWERED_ON) for places in wanted}
    return tried


def pilot(place: Path, starmap: Starmap, sizes: Sizes) -> dict[str, Any]:
    """What the pilot draws fix, with the accuracies that it follows from."""
    draws = [Draw(place, number, sizes) for number in PILOTS]
    unbounded = tuple(name for name in SOURCES if name not in BOUNDED)
    starmap(work.make_rows, [(draw, {}, unbounded) for draw in draws])
    (epsilons,) = starmap(bounds, [(draws,)])
    starmap(work.make_rows, [(draw, epsilons, BOUNDED) for draw in draws])

    few = few_epochs(draws, starmap)
    rates = {name: tuning.best(tried) for name, tried in few.items()}
    many = many_epochs(draws, rates, starmap)
    places = tuning.best(many)
    return {
        "pilots": list(PILOTS),
        "epsilons": epsilons,
        "learning_rates": {
            name: dict(zip(map(str, EPOCHS), (rate, tuning.lowered(rate, places)), strict=True))
            for name, rate in rates.items()
        },
        "validation_right": {
            "by_learning_rate": {
                name: {f"{rate:g}": score for rate, score in sorted(tried.items())} for name, tried in few.items()
            },
            "by_places_lower": {str(places): score for places, score in many.items()},
        },
    }
