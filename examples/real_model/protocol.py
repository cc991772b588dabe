"""The numbers of PROTOCOL.md. Nothing here may change once a draw exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distillation.protocol import ROWS_PER_STEP, Family

DRAWS = 5
PILOT = 1000
TRAINED = ("leg_counting", "chain_sum")
UNTRAINED = "letter_counting"
LEARNING_RATES = (1e-5, 3e-5, 1e-4)
WARM_UP_RATE = 1e-4
"""Of theta's and the teacher's own training."""
THETA_RATE = 0.25
"""Theta's share of right texts at which its training ends."""
TEACHER_RATE = 0.7
"""The teacher's, 60 % being the gate."""
COLD = 0.7
EPOCHS = 6
CANDIDATES = 4
FEWEST = 0.5
"""Of the rows: with fewer a source has no student."""
FEWEST_DRAWS = 3
"""For intervals."""
LEVEL = 0.05


@dataclass(frozen=True)
class Sizes:
    """How much of everything. The defaults are the protocol's."""

    rows: int = 240
    """Of each source."""
    training_problems: int = 720
    """Of each draw."""
    held_out: int = 120
    """Problems of each task, in each draw."""
    max_tokens: int = 300
    stages: int = 10
    """Of theta's and the teacher's own training, at most."""
    steps: int = 12
    """Of a stage."""
    stage_problems: int = 60
    """Sampled after each stage."""
    gate_problems: int = 200
    draws: int = DRAWS

    stage_rows: int = ROWS_PER_STEP
    """Worked solutions a step of a stage."""
    epochs: int = EPOCHS
    learning_rates: tuple[float, ...] = LEARNING_RATES
    """Of which the pilot picks one for each family; one alone is not picked."""

    @property
    def stage_solutions(self) -> int:
        """Worked solutions of a stage."""
        return self.steps * self.stage_rows

    @property
    def own_training(self) -> int:
        """Worked solutions for all stages of theta's training, and as many for the teacher's."""
        return self.stages * self.stage_solutions


SMALL = Sizes(
    rows=2,
    training_problems=4,
    held_out=1,
    max_tokens=6,
    stages=1,
    steps=2,
    stage_problems=2,
    gate_problems=2,
    draws=1,
    stage_rows=2,
)
"""A trial of every part; it measures nothing, and a gate that fails does not stop it."""


TWO_CORES = Sizes(
    rows=24,
    training_problems=72,
    held_out=8,
    stage_problems=24,
    gate_problems=60,
    draws=1,
    stage_rows=10,
    epochs=2,
    learning_rates=(3e-5,),
)
"""The pilot on a CPU: the two models, their gate, and one draw that decides nothing."""


@dataclass(frozen=True)
class Source:
    """One way to get rows."""

    label: str
    family: Family
    alpha_method: str = "fixed"
    alpha: float | None = None
    temperature: float = 1.0
    kept: Literal["first", "right", "theta_logprob"] = "first"


SOURCES: dict[str, Source] = {
    "theta_cold": Source("theta at 0.7", "theta", alpha=0.0, temperature=COLD),
    "theta_right": Source("theta, right of 4", "theta", alpha=0.0, kept="right"),
    "teacher": Source("teacher", "teacher", alpha=1.0),
    "teacher_best_theta": Source("teacher, best of 4 by log π_θ", "teacher", alpha=1.0, kept="theta_logprob"),
    "fixed_0.5": Source("fixed 0.5", "q*", alpha=0.5),
    "kl_symmetry": Source("KL symmetry", "q*", "kl_symmetry"),
    "entropy": Source("entropy", "q*", "entropy"),
    "kl_budget": Source("KL budget", "q*", "kl_budget"),
}
DEFAULT = "kl_symmetry"
RIVALS = ("entropy", "fixed_0.5", "kl_budget")
CONTROLS = ("theta_cold", "theta_right", "teacher", "teacher_best_theta")
OF_FAMILY: dict[Family, str] = {"theta": "theta_right", "teacher": "teacher", "q*": DEFAULT}
"""The source whose learning rate a family takes."""
