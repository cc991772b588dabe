"""The state of the experiment in one small file, results/summary.json: how many draws there are, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distillation.decision import decide, difference, primary_values
from distillation.means import Mean, mean_of
from distillation.protocol import CONTROLS, DEFAULT, DRAWS, RIVALS, SOURCES


def as_numbers(found: Mean) -> dict[str, float | None]:
    """A mean in points with its interval of 95 % over draws; null where a single draw has none."""
    numbers = {"mean": found.value, "low": found.low, "high": found.high, "deviation": found.deviation}
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in numbers.items()}


def summary(draws: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the draws say.

    `decision` is null before all draws exist. `primary` has every source's endpoint in per cent, `minus_default` and
    `minus_controls` the differences that the decision looks at, the latter of the recommended source (of the default
    before there is one).
    """
    found: dict[str, Any] = {"draws": len(draws), "draws_of_the_protocol": DRAWS, "decision": None}
    if not draws:
        return found
    values = primary_values(draws)
    recommended = DEFAULT
    if len(draws) == DRAWS:
        decision = decide(values)
        recommended = decision.recommended
        found["decision"] = vars(decision) | {"passing": sorted(decision.passing)}
    return found | {
        "primary": {name: as_numbers(mean_of(values[name])) for name in SOURCES},
        "minus_default": {name: as_numbers(difference(values, name, DEFAULT)) for name in RIVALS},
        "minus_controls": {name: as_numbers(difference(values, recommended, name)) for name in CONTROLS},
    }
