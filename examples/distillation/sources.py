"""The sources of training data that are compared: how each is asked for, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One way of getting completions for the same problems.

    A source is either drawn by `optimal-sampling generate` with ``options``, or the right ones among another's rows
    (``right_of``), or the worked solutions that come with the task.
    """

    label: str
    family: Literal["ends", "q*", "other mixtures", "filtered", "written"]
    options: tuple[str, ...] = ()
    privileged: bool = True
    """The teacher's prompt has the answer."""
    right_of: str | None = None

    @property
    def made(self) -> Literal["drawn", "filtered", "written"]:
        """How its rows come about."""
        return self.family if self.family in ("filtered", "written") else "drawn"


def _fixed(alpha: float) -> tuple[str, ...]:
    return ("--alpha-method", "fixed", "--alpha", str(alpha))


SOURCES: dict[str, Source] = {
    # Weight 0 and weight 1 are the two models alone, drawn by the same engine and with the same records.
    "theta": Source("theta alone", "ends", _fixed(0.0)),
    "teacher_without_answer": Source("teacher, without the answer", "ends", _fixed(1.0), privileged=False),
    "teacher": Source("teacher, with the answer", "ends", _fixed(1.0)),
    "arithmetic": Source(
        "arithmetic mixture, 0.5", "other mixtures", ("--alpha-method", "arithmetic", "--alpha", "0.5")
    ),
    "fixed_0.25": Source("fixed alpha 0.25", "other mixtures", _fixed(0.25)),
    "fixed_0.5": Source("fixed alpha 0.5", "other mixtures", _fixed(0.5)),
    "fixed_0.75": Source("fixed alpha 0.75", "other mixtures", _fixed(0.75)),
    "kl_symmetry": Source("q*, KL symmetry", "q*"),
    "kl_symmetry_min_0.5": Source("q*, KL symmetry, alpha ≥ 0.5", "q*", ("--alpha-min", "0.5")),
    "kl_symmetry_cold": Source("q*, KL symmetry, temperature 0.7", "q*", ("--temperature", "0.7")),
    "entropy": Source("alpha by entropy", "other mixtures", ("--alpha-method", "entropy")),
    "ess_balance": Source("alpha by ESS balance", "other mixtures", ("--alpha-method", "ess_balance")),
    "theta_right": Source("theta alone, right ones", "filtered", right_of="theta"),
    "teacher_right": Source("teacher with the answer, right ones", "filtered", right_of="teacher"),
    "kl_symmetry_right": Source("q*, KL symmetry, right ones", "filtered", right_of="kl_symmetry"),
    "written": Source("the task's own solutions", "written"),
}
"""All of the full grid, in the order of the tables. The filtered and the written ones cost no generation."""

SHORT = ("theta", "teacher", "arithmetic", "kl_symmetry")
"""The sources of the short form."""
