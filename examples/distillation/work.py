"""The pieces of a draw, each computed by a process of its own: rows, students, and theta before any training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import measure
import task
import torch
from transformers import PreTrainedModel

from distillation import PAIR, data_measures, problems, student
from distillation.pieces import piece, read
from distillation.protocol import ROWS_PER_STEP, Sizes
from distillation.rows import Models, Sums, Text, sources_of_draw
from distillation.student import Example


@dataclass(frozen=True)
class Draw:
    """A draw and where its pieces are."""

    place: Path
    """The folder of all draws' pieces."""
    number: int
    sizes: Sizes

    @property
    def folder(self) -> Path:
        return self.place / f"draw-{self.number:02d}"

    def rows_of(self, source: str) -> Path:
        return self.folder / "rows" / f"{source}.json"

    def training_problems(self) -> list[dict[str, Any]]:
        return problems.training(self.number, self.sizes.training_problems)


@dataclass(frozen=True)
class Training:
    """One student: whose rows, how long, how fast."""

    draw: Draw
    source: str
    epochs: int
    learning_rate: float


@cache
def models() -> Models:
    """The pair, once in each process, on one thread."""
    torch.set_num_threads(1)
    return Models.load()


def make_rows(draw: Draw, epsilons: dict[str, float], names: tuple[str, ...]) -> None:
    """The rows and measures of the sources `names`, a piece each."""
    missing = tuple(name for name in names if not draw.rows_of(name).exists())
    asked = draw.training_problems()
    drawn = sources_of_draw(models(), asked, draw.number, epsilons, missing, draw.sizes.rows)

    def rows_of(name: str) -> dict[str, Any]:
        texts = next(texts for found, texts in drawn if found == name)  # not those that came from elsewhere meanwhile
        kept = [[text.problem, text.token_ids, text.is_finished, vars(text.sums)] for text in texts]
        return {"source": name, "measures": data_measures.measures(models(), name, texts, asked), "rows": kept}

    for name in missing:
        made = piece(draw.rows_of(name), lambda name=name: rows_of(name))
        print(f"  draw {draw.number}, rows of {name}: {made['cpu_seconds']:.0f} s", flush=True)


def texts_of(draw: Draw, source: str) -> list[Text]:
    """The rows of a source, once they are made."""
    found = read(draw.rows_of(source))
    if found["source"] != source:
        raise ValueError(
            f"{draw.rows_of(source)} has the rows of {found['source']}; remove it and what was trained on it"
        )
    rows = found["rows"]
    return [Text(number, ids, is_finished, Sums(**sums)) for number, ids, is_finished, sums in rows]


def trained(job: Training) -> tuple[PreTrainedModel, float]:
    """A student, and the loss of its last epoch in nats a token."""
    asked, texts = job.draw.training_problems(), texts_of(job.draw, job.source)
    tokenizer = models().tokenizer
    examples = [
        Example(measure.render(tokenizer, task.theta_messages(asked[text.problem]["problem"])), text.token_ids)
        for text in texts
    ]
    model = measure.load(PAIR / "theta")
    loss = student.train(model, examples, job.epochs, job.learning_rate, job.draw.number, tokenizer.pad_token_id)
    return model, loss


def tune(job: Training) -> dict[str, Any]:
    """A student of a pilot draw and its greedy accuracy on the validation problems; its piece."""

    def compute() -> dict[str, Any]:
        model, loss = trained(job)
        shares = {
            name: student.judged(student.answers(model, models().tokenizer, asked), asked)["right"] / len(asked)
            for name, asked in problems.validation(job.draw.sizes.validation).items()
        }
        return {"last_loss": loss, "right": shares, "score": sum(shares.values()) / len(shares)}

    return piece(job.draw.folder / "tuning" / f"{job.source}-{job.epochs}-{job.learning_rate:g}.json", compute)


def evaluate(draw: Draw, model: PreTrainedModel) -> dict[str, Any]:
    """What a model does on a draw's held-out problems."""
    sizes, tokenizer = draw.sizes, models().tokenizer
    worked = problems.worked_validation(sizes.validation)
    return student.evaluate(model, tokenizer, problems.held_out(draw.number, sizes.held_out), worked, draw.number)


def evaluate_student(job: Training) -> dict[str, Any]:
    """A student and what it does on its draw's held-out problems; its piece."""

    def compute() -> dict[str, Any]:
        model, loss = trained(job)
        steps = job.epochs * -(-job.draw.sizes.rows // ROWS_PER_STEP)
        found = {"learning_rate": job.learning_rate, "steps": steps, "last_loss": loss}
        return found | evaluate(job.draw, model)

    made = piece(job.draw.folder / "students" / f"{job.source}-{job.epochs}.json", compute)
    print(f"  draw {job.draw.number}, {job.source}, {job.epochs} epochs: {made['cpu_seconds']:.0f} s", flush=True)
    return made


def evaluate_theta(draw: Draw) -> dict[str, Any]:
    """Theta before any training on a draw's held-out problems; its piece."""
    return piece(draw.folder / "theta.json", lambda: evaluate(draw, models().theta))
