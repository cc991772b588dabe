"""Everything that the pages are made of: the files in results/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distillation import RESULTS
from distillation.decision import Decision, Values, accuracy, decide, load_draws, primary_values
from distillation.protocol import DRAWS, EPOCHS, SOURCES

SHOWN = ("theta_right_1", "teacher", "fixed_0.5", "kl_symmetry", "entropy")
"""The sources of the page's table, besides theta itself and the best other."""


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
