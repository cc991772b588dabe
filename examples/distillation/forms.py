"""The forms of the experiment: the short one, under an hour on two cores; all sources; and four times the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from distillation.sources import SHORT, SOURCES
from distillation.student import Recipe


@dataclass(frozen=True)
class Form:
    """What is compared, with how many problems and seeds. All seeds are here."""

    name: str
    sources: tuple[str, ...]
    problems: int
    """Training problems, the same for all sources, one completion of each."""
    seeds: tuple[int, ...]
    """Of the order of the examples and of sampling in the evaluation: one student for each source and seed."""
    second_round: tuple[str, ...] = ()
    """The sources whose students are theta once more."""
    recipe: Recipe = field(default_factory=Recipe)
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    validation_problems: int = 400
    held_out: int | None = None
    """Only so many first held-out problems of each set, for a trial. None: all."""
    tuning_seed: int = 1000
    problem_seed: int = 100
    """Of the first round's training problems; the second round's are of the next seed."""
    validation_seed: int = 100
    generation_seed: int = 0


FORMS = {
    form.name: form
    for form in (
        Form("short", SHORT, problems=300, seeds=(0, 1, 2)),
        # The short form's pieces are the full grid's too.
        Form("full", tuple(SOURCES), problems=300, seeds=(0, 1, 2, 3, 4), second_round=SHORT),
        Form("more_data", SHORT, problems=1200, seeds=(0, 1, 2, 3, 4)),
    )
}
