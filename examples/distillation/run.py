"""Does data drawn from q* teach better? One command, which goes on where it was interrupted:

    make distillation                                    the short form: four sources, three seeds, under an hour on two cores
    python examples/distillation/run.py --form full      all sources, five seeds and a second round, in some hours
    python examples/distillation/run.py --form more_data    the short form's sources with four times the problems, in hours

Rows are drawn by `optimal-sampling generate`, students are trained and evaluated by transformers. Every finished piece
leaves a file under work/, and the figures go to results/, as plots too, and into README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distillation import HERE, PAIR  # first: it finds the modules that follow

# isort: split
import measure
import recording
import task
import torch
from transformers import AutoTokenizer

from distillation import quality, report, student
from distillation.forms import FORMS, Form
from distillation.generation import check_apart, draw_problems, make_rows, read_source, write_jsonl
from distillation.sources import SOURCES

THETA = PAIR / "theta"


def piece(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A JSON file's content; where there is none, it is computed, with its seconds and the commit, and written whole."""
    if not path.exists():
        started = time.monotonic()
        found = compute()
        found |= {"seconds": round(time.monotonic() - started, 1), "commit": recording.commit()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(recording.rounded(found, 6)))
        part.replace(path)
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Training:
    """One student: whose rows, from which theta, and how."""

    output: Path
    rows: Path
    source: str
    theta: Path
    learning_rate: float
    seed: int
    recipe: student.Recipe
    validation: Path | None = None
    """Tuning: judged at the end on these problems alone. None: a student, judged on the held-out ones."""
    held_out: int | None = None
    """Only so many first held-out problems of each set."""
    keep: Path | None = None
    """Where the student's weights go."""


def train_one(job: Training) -> dict[str, Any]:
    """Train and evaluate one student; its piece."""
    return piece(job.output, lambda: trained(job))


def trained(job: Training) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(THETA)
    model = measure.load(job.theta)
    rows = read_source(job.rows, job.source)
    found: dict[str, Any] = {
        "source": job.source,
        "seed": job.seed,
        "learning_rate": job.learning_rate,
        "examples": len(rows),
    }
    problems = {} if job.validation else student.held_out(job.held_out)
    curve = []
    for step, loss, learnt in student.train(
        model, rows, job.recipe, job.learning_rate, job.seed, tokenizer.pad_token_id
    ):
        if not job.validation:
            curve.append({"step": step, "loss": loss, "tokens": learnt})
            curve[-1] |= student.evaluate(model, tokenizer, problems["stories"], job.seed)
    if job.validation:
        found["validation"] = student.evaluate(model, tokenizer, task.read_rows(job.validation), job.seed)
    else:
        found["curve"] = curve
        rest = {name: student.evaluate(model, tokenizer, problems[name], job.seed) for name in ("longer", "sorting")}
        found["end"] = {"stories": {key: curve[-1][key] for key in ("sampled", "greedy")}} | rest
    if job.keep:
        model.save_pretrained(job.keep)
        tokenizer.save_pretrained(job.keep)
    return found


def untrained(output: Path, theta: Path, seed: int, held_out: int | None) -> dict[str, Any]:
    """Theta itself, evaluated as the students are; its piece."""

    def compute() -> dict[str, Any]:
        torch.set_num_threads(1)
        tokenizer, model = AutoTokenizer.from_pretrained(THETA), measure.load(theta)
        end = {
            name: student.evaluate(model, tokenizer, rows, seed) for name, rows in student.held_out(held_out).items()
        }
        return {"seed": seed, "end": end}

    return piece(output, compute)


def quality_of(output: Path, rows_folder: Path, name: str, theta: Path) -> dict[str, Any]:
    """The figures of one source's rows; their piece."""

    def compute() -> dict[str, Any]:
        torch.set_num_threads(1)
        tokenizer = AutoTokenizer.from_pretrained(THETA)
        rows, source = read_source(rows_folder, name), SOURCES[name]
        scores = quality.score(
            rows, source, measure.load(theta).double(), measure.load(PAIR / "teacher").double(), tokenizer
        )
        return quality.figures(rows, source, scores)

    return piece(output, compute)


def short_curve(run: dict[str, Any]) -> dict[str, Any]:
    """A student's piece with shares in its learning curve instead of a mark for each problem."""
    curve = [
        {
            key: {what: report.share(marks) for what, marks in value.items()} if isinstance(value, dict) else value
            for key, value in point.items()
        }
        for point in run["curve"]
    ]
    return run | {"curve": curve}


def seconds_of(pieces: Any) -> float:
    """What all pieces in a structure took."""
    if isinstance(pieces, dict):
        return pieces.get("seconds", 0.0) + sum(map(seconds_of, pieces.values()))
    return sum(map(seconds_of, pieces)) if isinstance(pieces, list) else 0.0


def validated(tuned: dict[str, Any]) -> float:
    """What a learning rate is chosen by: the share right on validation problems, mean of sampled and greedy."""
    return sum(report.shares(tuned["validation"][way]["right"] for way in report.WAYS)) / len(report.WAYS)


class Experiment:
    """One form of the experiment in one folder, done in stages."""

    def __init__(self, form: Form, work: Path, jobs: int) -> None:
        self.form, self.work, self.jobs = form, work, jobs
        self.validation = work / "validation.jsonl"
        self.made: list[dict[str, Any]] = []  # the pieces of the rows

    def prepare(self) -> None:
        """Draw the problems, and see that the folder belongs to these settings.

        Raises:
            ValueError: the folder was begun with other settings, or a held-out problem is among those drawn.

        """
        # What may grow from one run to the next is not compared.
        settings = json.loads(json.dumps(asdict(replace(self.form, name="", sources=(), seeds=(), second_round=()))))
        begun = self.work / "settings.json"
        if begun.exists() and json.loads(begun.read_text()) != settings:
            raise ValueError(f"{self.work} was begun with other settings; give another --work, or remove it")
        form = self.form
        training = draw_problems("train", form.problem_seed, form.problems)
        second = draw_problems("train", form.problem_seed + 1, form.problems)
        validation = draw_problems("validation", form.validation_seed, form.validation_problems)
        stories, longer, sorting = student.held_out().values()
        for drawn in (training, second):
            check_apart(training=drawn, validation=validation, held_out=stories, longer=longer, sorting=sorting)
        write_jsonl(self.work / "problems.jsonl", training)
        write_jsonl(self.work / "round2" / "problems.jsonl", second)
        write_jsonl(self.validation, validation)
        begun.write_text(json.dumps(settings, indent=1))

    def side_by_side(self, function: Callable[..., Any], arguments: Sequence[tuple], what: str) -> list[Any]:
        """Call a function with each of the arguments, in processes of their own."""
        started = time.monotonic()
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(function, *zip(*arguments, strict=True))) if arguments else []
        print(f"{what}: {len(arguments)} in {time.monotonic() - started:.0f} s", flush=True)
        return found

    def generate(self, names: Sequence[str], folder: Path, thetas: dict[str, Path], seed: int) -> None:
        """The rows of all sources; those drawn side by side, then those made of them."""
        tokenizer = AutoTokenizer.from_pretrained(THETA)

        def one(name: str) -> None:
            def compute() -> dict[str, Any]:
                make_rows(name, folder / "problems.jsonl", folder / "rows", thetas[name], seed, tokenizer)
                return {"source": name, "rows": len(read_source(folder / "rows", name))}

            made = piece(folder / "rows" / f"{name}.json", compute)
            self.made.append(made)
            print(f"  {name}: {made['rows']} rows in {made['seconds']} s", flush=True)

        started = time.monotonic()
        for is_drawn in (True, False):
            with ThreadPoolExecutor(self.jobs) as pool:
                list(pool.map(one, [name for name in names if (SOURCES[name].made == "drawn") == is_drawn]))
        print(f"rows: {time.monotonic() - started:.0f} s", flush=True)

    def first_rows(self) -> None:
        self.generate(self.form.sources, self.work, dict.fromkeys(SOURCES, THETA), self.form.generation_seed)

    def qualities(self) -> dict[str, dict[str, Any]]:
        names, folder = self.form.sources, self.work
        arguments = [(folder / "quality" / f"{name}.json", folder / "rows", name, THETA) for name in names]
        return dict(zip(names, self.side_by_side(quality_of, arguments, "figures of the data"), strict=True))

    def tuning(self) -> dict[str, dict[float, dict[str, Any]]]:
        """Every source at every learning rate, judged on validation problems."""
        form = self.form
        grid = [(name, rate) for name in form.sources for rate in form.learning_rates]
        arguments = [
            (
                Training(
                    self.work / "tuning" / f"{name}-{rate:g}.json", self.work / "rows", name, THETA, rate,
                    form.tuning_seed, form.recipe, validation=self.validation,
                ),
            )
            for name, rate in grid
        ]  # fmt: skip
        found = self.side_by_side(train_one, arguments, "learning rates")
        tuned: dict[str, dict[float, dict[str, Any]]] = {name: {} for name in form.sources}
        for (name, rate), one in zip(grid, found, strict=True):
            tuned[name][rate] = one
        return tuned

    def training(
        self, output: Path, rows: Path, name: str, theta: Path, rate: float, seed: int, keep: bool
    ) -> Training:
        """A student to be judged on the held-out problems; its weights are kept beside its piece, or not."""
        form = self.form
        weights = output.with_suffix("") if keep else None
        return Training(output, rows, name, theta, rate, seed, form.recipe, held_out=form.held_out, keep=weights)

    def students(self, rates: dict[str, float]) -> dict[str, list[dict[str, Any]]]:
        """The students of all sources and seeds; the first seed's weights are kept for the second round."""
        form, folder = self.form, self.work / "students"
        arguments = [
            (
                self.training(
                    folder / f"{name}-{seed}.json",
                    self.work / "rows",
                    name,
                    THETA,
                    rates[name],
                    seed,
                    seed == form.seeds[0],
                ),
            )
            for name in form.sources
            for seed in form.seeds
        ]
        found = map(short_curve, self.side_by_side(train_one, arguments, "students"))
        return {name: [next(found) for _ in form.seeds] for name in form.sources}

    def before(self) -> list[dict[str, Any]]:
        """Theta before any training, once for each seed."""
        arguments = [
            (self.work / "before" / f"{seed}.json", THETA, seed, self.form.held_out) for seed in self.form.seeds
        ]
        return self.side_by_side(untrained, arguments, "theta before training")

    def second_round(self, rates: dict[str, float]) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Each source's first student becomes theta, new rows are drawn with it, and it is trained on them.

        As a control the same student is trained on the first round's rows once more.
        """
        folder, names = self.work / "round2", self.form.second_round
        thetas = self.first_students()
        self.generate(names, folder, thetas, self.form.generation_seed + 1)
        arguments = [
            (
                self.training(
                    folder / "students" / f"{name}-{kind}-{seed}.json",
                    rows,
                    name,
                    thetas[name],
                    rates[name],
                    seed,
                    False,
                ),
            )
            for kind, rows in (("new", folder / "rows"), ("again", self.work / "rows"))
            for name in names
            for seed in self.form.seeds
        ]
        found = map(short_curve, self.side_by_side(train_one, arguments, "students of the second round"))
        students = {name: {kind: [] for kind in ("new", "again")} for name in names}
        for kind in ("new", "again"):
            for name in names:
                students[name][kind] = [next(found) for _ in self.form.seeds]
        return students

    def first_students(self) -> dict[str, Path]:
        """Where the weights of each source's first student are."""
        return {name: self.work / "students" / f"{name}-{self.form.seeds[0]}" for name in self.form.second_round}

    def second_qualities(self) -> dict[str, dict[str, Any]]:
        folder, names, thetas = self.work / "round2", self.form.second_round, self.first_students()
        arguments = [(folder / "quality" / f"{name}.json", folder / "rows", name, thetas[name]) for name in names]
        return dict(zip(names, self.side_by_side(quality_of, arguments, "figures of the new data"), strict=True))

    def run(self) -> dict[str, Any]:
        """All stages, and the result."""
        header = recording.header("distillation")
        started = time.monotonic()
        self.prepare()
        self.first_rows()
        qualities = self.qualities()
        tuned = self.tuning()
        rates = {name: max(by_rate, key=lambda rate: validated(by_rate[rate])) for name, by_rate in tuned.items()}
        students = self.students(rates)
        result = header | {
            "form": asdict(self.form),
            "machine_jobs": self.jobs,
            "labels": {name: SOURCES[name].label for name in self.form.sources},
            "families": {name: SOURCES[name].family for name in self.form.sources},
            "data": qualities,
            "tuning": {
                name: {f"{rate:g}": validated(one) for rate, one in by_rate.items()} for name, by_rate in tuned.items()
            },
            "learning_rates": rates,
            "before": self.before(),
            "students": students,
        }
        if self.form.second_round:
            second = self.second_round(rates)
            result["second_round"] = {"data": self.second_qualities(), "students": second}
        result["seconds_of_this_run"] = round(time.monotonic() - started)
        result["seconds_of_all_pieces"] = round(seconds_of([self.made, tuned, result]))
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--form", choices=FORMS, default="short", help="short; full: all sources, two rounds; or more_data"
    )
    parser.add_argument(
        "--work", type=Path, help="folder of the unfinished work (default: work/N-problems beside this script)"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the result and the plots")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes side by side (default: all cores)"
    )
    parser.add_argument("--sources", help="only these, by comma: " + ",".join(SOURCES))
    parser.add_argument(
        "--draw", type=int, default=0, help="1, 2, ...: other problems and other rows, to see how much hangs on them"
    )
    parser.add_argument("--problems", type=int, help="training problems")
    parser.add_argument("--seeds", type=int, help="students of each source")
    parser.add_argument("--steps", type=int, help="training steps; the learning curve then has two points")
    parser.add_argument("--held-out", type=int, help="held-out problems of each set, the first ones (default: all)")
    parser.add_argument("--only-generate", action="store_true", help="stop after the first round's rows")
    given = parser.parse_args()

    form = FORMS[given.form]
    if given.sources:
        chosen = tuple(given.sources.split(","))
        form = replace(form, sources=chosen, second_round=tuple(name for name in form.second_round if name in chosen))
    if given.draw:
        seeds = {
            "problem_seed": form.problem_seed + 10 * given.draw,
            "generation_seed": form.generation_seed + 10 * given.draw,
        }
        form = replace(form, name=f"{form.name}_draw_{given.draw}", **seeds)
    if given.problems:
        form = replace(form, problems=given.problems)
    if given.seeds:
        form = replace(form, seeds=tuple(range(given.seeds)))
    if given.held_out:
        form = replace(form, held_out=given.held_out)
    if given.steps:
        form = replace(form, recipe=replace(form.recipe, steps=given.steps, evaluate_steps=(0, given.steps)))
    folder = f"{form.problems}-problems" + (f"-draw-{given.draw}" if given.draw else "")
    experiment = Experiment(form, (given.work or HERE / "work" / folder).resolve(), given.jobs)
    if given.only_generate:
        experiment.prepare()
        experiment.first_rows()
        return
    result = experiment.run()
    recording.write(given.results / f"{form.name}.json", report.summarised(result))
    if given.results == HERE / "results":
        report.write(given.results)


if __name__ == "__main__":
    main()
