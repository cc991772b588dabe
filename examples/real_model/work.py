"""The jobs of the experiment. Each leaves one JSON file, and is called in a process that keeps its engine for the next."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import measure
import smollm2
import torch
from distillation import student
from distillation.pieces import piece, read
from distillation.student import Example
from distillation.tuning import best
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from real_model import gate, problem_files, tasks
from real_model.analysis import primary
from real_model.drawer import Drawer, measures
from real_model.engine import Engine
from real_model.grouped_attention import on_cpu
from real_model.lockstep import Lockstep
from real_model.protocol import (
    FEWEST,
    OF_FAMILY,
    PILOT,
    SOURCES,
    TEACHER_RATE,
    THETA_RATE,
    TRAINED,
    WARM_UP_RATE,
    Sizes,
)


@dataclass(frozen=True)
class Place:
    """Where everything is."""

    state: Path
    """The jobs' files and the two models."""
    problems: Path
    """As `problem_files` writes them."""
    model: Path
    """SmolLM2: its GGUF file, or a model's folder."""
    sizes: Sizes
    eager: bool = False
    """Engines without CUDA graphs."""
    in_lockstep: bool = False
    """Without an engine: by transformers."""

    @property
    def theta(self) -> Path:
        return self.state / "models" / "theta"

    @property
    def teacher(self) -> Path:
        return self.state / "models" / "teacher"

    def stage(self, who: str, number: int) -> Path:
        """What came of a stage of theta's or the teacher's own training."""
        return self.state / "stages" / f"{who}-{number:02d}.json"

    def stages(self, who: str) -> list[dict[str, Any]]:
        """What came of its finished stages."""
        paths = (self.stage(who, number) for number in range(self.sizes.stages))
        return [read(path) for path in paths if path.exists()]

    def after(self, who: str, number: int) -> Path:
        """The model after that stage."""
        return self.state / "models" / f"{who}-{number:02d}"

    @property
    def prepared(self) -> Path:
        return self.state / "prepared.json"

    @property
    def gate(self) -> Path:
        return self.state / "gate.json"

    @property
    def fixed(self) -> Path:
        """What the pilot fixed."""
        return self.state / "fixed.json"

    def started(self, process: int) -> Path:
        return self.state / f"started-{process}.json"

    def rows(self, draw: int, source: str) -> Path:
        return self.state / f"draw-{draw:04d}" / "rows" / f"{source}.json"

    def student(self, draw: int, source: str) -> Path:
        return self.state / f"draw-{draw:04d}" / "students" / f"{source}.json"

    def tuned(self, source: str, rate: float) -> Path:
        """A student of the pilot."""
        return self.state / f"draw-{PILOT:04d}" / "tuning" / f"{source}-{rate:g}.json"

    def untrained(self, draw: int) -> Path:
        """Theta itself on a draw's held-out problems."""
        return self.state / f"draw-{draw:04d}" / "theta.json"


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def arithmetic() -> torch.autocast:
    """Of a training: weights are in float32, products in bfloat16."""
    return torch.autocast(device(), torch.bfloat16, cache_enabled=False)  # a cache would outlive the step


def at_a_time() -> int | None:
    """Examples a forward of a training: all of a step's on a GPU, few where their logits would fill the memory."""
    return None if torch.cuda.is_available() else 5


@cache
def drawer_of(place: Place) -> Drawer:
    """What draws in this process."""
    if place.in_lockstep:
        return Lockstep(place.teacher, place.theta, place.sizes)
    return Engine(place.teacher, place.theta, place.sizes, place.eager)


def load(folder: Path) -> PreTrainedModel:
    """A model to be trained."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device())


def leave_the_card() -> None:
    """Give the memory of what is deleted to the other processes."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prepare(place: Place) -> None:
    """Train theta, and from it the teacher."""

    def compute() -> dict[str, Any]:
        if place.model.suffix == ".gguf":
            model, tokenizer = smollm2.load(place.model, torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(place.model)
        model = model.to(device())
        theta = in_stages(place, model, tokenizer, "theta", THETA_RATE)
        save(model, tokenizer, place.theta)
        wanted = max(TEACHER_RATE, gate.RATIO * theta[-1]["right"] / theta[-1]["problems"])
        teacher = in_stages(place, model, tokenizer, "teacher", wanted)
        save(model, tokenizer, place.teacher)
        del model
        leave_the_card()
        return {"theta": theta, "teacher": teacher}

    piece(place.prepared, compute)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def in_stages(
    place: Place, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, who: str, wanted: float
) -> list[dict[str, Any]]:
    """Train on worked solutions until the share `wanted` of sampled texts is right; the counts after each stage.

    Each stage is a file, and its model is kept until the next stage's is there.

    Args:
        who: "theta" or "teacher": by its prompts and on its problems.
    """
    sizes, prompt = place.sizes, tasks.theta_messages if who == "theta" else tasks.shown_messages
    worked = [
        Example(
            measure.render(tokenizer, prompt(problem)),
            [*tokenizer.encode(tasks.solution(problem), add_special_tokens=False), tokenizer.eos_token_id],
        )
        for problem in problem_files.read(place.problems, who)
    ]
    sampled = problem_files.read(place.problems, "stages")
    each = sizes.stage_solutions

    def stage(number: int) -> dict[str, Any]:
        end = tokenizer.eos_token_id
        learnt = worked[number * each : (number + 1) * each]
        with arithmetic():
            loss = student.train(model, learnt, 1, WARM_UP_RATE, number, end, sizes.stage_rows, at_a_time())
        trained = time.process_time()
        torch.manual_seed(number)
        reader = on_cpu(copy.deepcopy(model).to(torch.bfloat16))
        texts = gate.texts_of(reader, tokenizer, [prompt(problem) for problem in sampled], sizes.max_tokens)
        sampling = time.process_time() - trained
        save(model, tokenizer, place.after(who, number))
        found = {"loss": loss} | gate.counts(texts, sampled)
        return found | {"sampling_cpu_seconds": sampling, "first_texts": texts[: len(TRAINED)]}

    found = place.stages(who)
    if found:
        model.load_state_dict(load(place.after(who, len(found) - 1)).state_dict())
    while len(found) < sizes.stages and not (found and found[-1]["right"] >= wanted * len(sampled)):
        number = len(found)
        found.append(piece(place.stage(who, number), partial(stage, number)))
        shutil.rmtree(place.after(who, number - 1), ignore_errors=True)
    return found


def start(place: Place, number: int) -> None:
    """Start this process's engine, so that all start side by side."""

    def compute() -> dict[str, Any]:
        drawer_of(place)
        return {}

    piece(place.started(number), compute)


def hold_to_the_gate(place: Place) -> None:
    """Theta and the teacher on the gate's problems, and whether the teacher passes."""

    def compute() -> dict[str, Any]:
        drawer, problems = drawer_of(place), problem_files.read(place.problems, "gate")
        drawer.load(None)
        found: dict[str, Any] = {}
        for who in ("theta", "teacher"):
            texts = drawer.alone(problems, who, seed=0)
            found[who] = gate.counts(texts, problems) | {"first_texts": texts[: len(TRAINED)]}
        return found | {"passes": gate.passes(found["theta"], found["teacher"])}

    piece(place.gate, compute)


def make_rows(place: Place, draw: int, source: str) -> None:
    """A source's rows in a draw. What each token was drawn from is kept for the pilot, which needs it."""

    def compute() -> dict[str, Any]:
        drawer, problems = drawer_of(place), problem_files.read(place.problems, problem_files.training(draw))
        drawer.load(None)
        epsilon = read(place.fixed)["epsilon"] if source == "kl_budget" else None
        texts = drawer.rows(problems, SOURCES[source], draw, epsilon)
        kept = [[text.problem, text.token_ids] for text in texts]
        found = {"measures": measures(drawer, texts, problems), "rows": kept}
        return found | ({"kl": [text.kl for text in texts]} if draw == PILOT else {})

    piece(place.rows(draw, source), compute)


def trained(place: Place, draw: int, source: str, rate: float) -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """A student with its steps and last loss; None where the rows are too few."""
    drawer, problems = drawer_of(place), problem_files.read(place.problems, problem_files.training(draw))
    rows = read(place.rows(draw, source))["rows"]
    if len(rows) < max(1, FEWEST * place.sizes.rows):
        return None
    examples = [
        Example(measure.render(drawer.tokenizer, tasks.theta_messages(problems[number])), token_ids)
        for number, token_ids in rows
    ]
    model = load(place.theta)
    end = drawer.tokenizer.eos_token_id
    with arithmetic():
        loss = student.train(model, examples, place.sizes.epochs, rate, draw, end, at_a_time=at_a_time())
    return model, {"learning_rate": rate, "rows": len(rows), "last_loss": loss}


def evaluated(place: Place, draw: int, source: str, rate: float) -> dict[str, Any]:
    """A student and its answers to the draw's held-out problems; without `tasks` where there is no student."""
    found = trained(place, draw, source, rate)
    if found is None:
        return {"learning_rate": rate, "tasks": None}
    model, how = found
    drawer = drawer_of(place)
    drawer.load(model)
    del model, found
    leave_the_card()
    return how | {"tasks": drawer.answers(problem_files.read(place.problems, problem_files.held_out(draw)))}


def tune(place: Place, source: str, rate: float) -> None:
    """A student of the pilot."""
    piece(place.tuned(source, rate), lambda: evaluated(place, PILOT, source, rate))


def evaluate_student(place: Place, draw: int, source: str) -> None:
    """A student of a draw, at its family's learning rate."""

    def compute() -> dict[str, Any]:
        rate = read(place.fixed)["learning_rates"][SOURCES[source].family]
        return evaluated(place, draw, source, rate)

    piece(place.student(draw, source), compute)


def evaluate_theta(place: Place, draw: int) -> None:
    """Theta itself on a draw's held-out problems."""

    def compute() -> dict[str, Any]:
        drawer = drawer_of(place)
        drawer.load(None)
        return {"tasks": drawer.answers(problem_files.read(place.problems, problem_files.held_out(draw)))}

    piece(place.untrained(draw), compute)


def fix(place: Place) -> None:
    """Epsilon and the learning rates, of the pilot."""

    def compute() -> dict[str, Any]:
        tried, rates = place.sizes.learning_rates, {}
        for family, source in OF_FAMILY.items():
            scores = {rate: primary(read(place.tuned(source, rate))) for rate in tried} if len(tried) > 1 else {}
            known = {rate: score for rate, score in scores.items() if score is not None}
            rates[family] = best(known) if known else tried[0]
        teacher, constant = (
            [kl for text in read(place.rows(PILOT, source))["kl"] for kl in text] for source in ("teacher", "fixed_0.5")
        )
        return {"learning_rates": rates, "epsilon": matched_bound(teacher, sum(constant) / len(constant))}

    piece(place.fixed, compute)


def matched_bound(divergences: Sequence[float], mean: float) -> float:
    """The bound at which the divergences, each cut off there, have this mean; their largest where the mean is larger."""
    low, high = 0.0, max(divergences)
    for _ in range(100):
        middle = (low + high) / 2
        if sum(min(one, middle) for one in divergences) < mean * len(divergences):
            low = middle
        else:
            high = middle
    return high
