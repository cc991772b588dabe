"""The numbers of PROTOCOL.md. Nothing here may change once a draw exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["theta", "teacher", "q*"]

DRAWS = 20
PILOTS = (1000, 1001, 1002)
CANDIDATES = 4
"""Completions of a problem from which one is kept, where one is."""
EPOCHS = (4, 16)
ROWS_PER_STEP = 30
WARM_UP = 0.1
"""Of the steps."""
SETS = {"stories": "story", "longer": "longer", "sorting": "sorting"}
"""The held-out sets, with their kind of problem in task.py: trained on, shifted, not trained on."""
LEARNING_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
TRIED_FIRST = (3e-5, 1e-4, 3e-4)
"""With 4 epochs."""
LOWERED_ON = ("teacher", "theta_right_1", "kl_symmetry")
"""The sources by which the rates are lowered for 16 epochs."""
COLD = 0.7
TEMPERATURES = tuple(round(0.5 + 0.05 * step, 2) for step in range(21))
"""Of which a student's is the one that makes the validation stories' worked solutions likeliest."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything. The defaults are the protocol's; tests have less."""

    rows: int = 900
    """Of each source."""
    training_problems: int = 3000
    """Of each draw's stream, so that as many as `rows` have a right text."""
    held_out: int = 1000
    """Problems of each set, new ones for each draw."""
    validation: int = 300
    """Problems of each set, and worked stories."""
    matched_on: int = 300
    """Texts of the first pilot along which the second KL bound is found."""


@dataclass(frozen=True)
class Source:
    """One way to get rows: which texts are drawn, and which of them are kept."""

    label: str
    family: Family
    drawn: str
    """The rule of `mixtures.RULES` that the tokens are drawn by."""
    kept: Literal["first", "right", "theta_logprob", "log_z"] = "first"
    candidates: int = 1
    alpha: float | None = None
    is_matched: bool = False
    """Its bound of the KL is the one whose mean KL is that of `CONSTANT`."""


SOURCES: dict[str, Source] = {
    "theta_cold": Source("theta at 0.7", "theta", "theta_cold"),
    "theta_right_1": Source("theta, right ones", "theta", "theta", "right"),
    "theta_right_4": Source("theta, right of 4", "theta", "theta", "right", CANDIDATES),
    "teacher": Source("teacher", "teacher", "teacher"),
    "teacher_best_theta": Source("teacher, best of 4 by log π_θ", "teacher", "teacher", "theta_logprob", CANDIDATES),
    "teacher_best_log_z": Source("teacher, best of 4 by Σ log Z", "teacher", "teacher", "log_z", CANDIDATES),
    "fixed_0.5": Source("fixed 0.5", "q*", "fixed", alpha=0.5),
    "fixed_0.6": Source("fixed 0.6", "q*", "fixed", alpha=0.6),
    "kl_symmetry": Source("KL symmetry", "q*", "kl_symmetry"),
    "kl_symmetry_best_log_z": Source("KL symmetry, best of 4 by Σ log Z", "q*", "kl_symmetry", "log_z", CANDIDATES),
    "entropy": Source("entropy", "q*", "entropy"),
    "kl_budget": Source("KL budget", "q*", "kl_budget"),
    "kl_budget_matched": Source("KL budget, KL of fixed 0.5", "q*", "kl_budget", is_matched=True),
}

DEFAULT = "kl_symmetry"
CONSTANT = "fixed_0.5"
RIVALS = ("entropy", CONSTANT, "kl_budget")
"""Of which one may be recommended in the default's place."""
CONTROLS = ("teacher", "teacher_best_theta", "teacher_best_log_z", "theta_right_1", "theta_right_4")
"""Each of which q* has to beat before it is said to teach better."""
LEVEL = 0.05
FAR = 3.0
"""Points by which the recommended source has to be ahead, with its whole interval, before a request's default changes."""
