"""The texts of each source: drawn from both models in lockstep, scored as they are drawn, and kept by the source's rule."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import measure
import task
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from distillation import PAIR
from distillation.lockstep import complete
from distillation.mixtures import mixed
from distillation.protocol import CANDIDATES, COLD, SOURCES, Source

BATCH = 300


@dataclass(frozen=True)
class Models:
    """The pair."""

    theta: PreTrainedModel
    teacher: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls) -> Models:
        tokenizer = AutoTokenizer.from_pretrained(PAIR / "theta")
        return cls(measure.load(PAIR / "theta"), measure.load(PAIR / "teacher"), tokenizer)


@dataclass
class Sums:
    """Totals over a text's tokens, in nats but for alpha. `kl` and `entropy` are those of what each token was drawn from."""

    theta_logprob: float
    kl: float
    entropy: float
    alpha: float
    log_z: float


@dataclass(frozen=True)
class Text:
    """A completion of the problem with this number in the draw's order."""

    problem: int
    token_ids: list[int]
    is_finished: bool
    sums: Sums


def seed_of(draw: int, what: str) -> int:
    """A seed for each thing that is drawn: 32 bits of the draw's number and a name."""
    return zlib.crc32(f"distillation {draw} {what}".encode())


def draw_texts(
    models: Models,
    problems: Sequence[dict[str, Any]],
    numbers: Sequence[int],
    rule: str,
    generator: torch.Generator,
    alpha: float | None = None,
    epsilon: float | None = None,
) -> list[Text]:
    """One text for each of `numbers`, which are places in `problems`.

    Args:
        rule: `theta`, `theta_cold`, or one that `mixtures.mixed` has; `alpha` and `epsilon` are its arguments.
    """
    texts = []
    for first in range(0, len(numbers), BATCH):
        texts += _draw_batch(models, problems, numbers[first : first + BATCH], rule, generator, alpha, epsilon)
    return texts


def _draw_batch(
    models: Models,
    problems: Sequence[dict[str, Any]],
    numbers: Sequence[int],
    rule: str,
    generator: torch.Generator,
    alpha: float | None,
    epsilon: float | None,
) -> list[Text]:
    asked = [problems[number] for number in numbers]
    readers = [
        measure.Reader(models.theta, models.tokenizer, [task.theta_messages(row["problem"]) for row in asked]),
        measure.Reader(
            models.teacher, models.tokenizer, [task.teacher_messages(row["problem"], row["answer"]) for row in asked]
        ),
    ]
    totals = {field.name: torch.zeros(len(asked), dtype=torch.float64) for field in fields(Sums)}

    def choose(places: torch.Tensor, theta: torch.Tensor, teacher: torch.Tensor | None = None) -> torch.Tensor:
        if teacher is None:
            log_q = theta if rule == "theta" else (theta / COLD).log_softmax(-1)
            weight = log_z = torch.zeros(len(theta), dtype=theta.dtype)
        else:
            found = mixed(rule, theta, teacher, alpha, epsilon)
            log_q, weight, log_z = found.log_q, found.alpha, found.log_z
        q = log_q.exp()
        tokens = torch.multinomial(q, 1, generator=generator)
        values = {
            "theta_logprob": theta.gather(1, tokens)[:, 0],
            "kl": (q * (log_q - theta)).sum(-1),
            "entropy": -(q * log_q).sum(-1),
            "alpha": weight,
            "log_z": log_z,
        }
        for name, value in values.items():
            totals[name][places] += value
        return tokens[:, 0]

    end = models.tokenizer.eos_token_id
    drawn = complete(readers[:1] if rule in ("theta", "theta_cold") else readers, choose, end)
    columns = zip(*(totals[field.name].tolist() for field in fields(Sums)), strict=True)
    return [
        Text(number, token_ids, token_ids[-1] == end, Sums(*sums))
        for number, token_ids, sums in zip(numbers, drawn, columns, strict=True)
    ]


def words(models: Models, text: Text) -> str:
    """The text as it is judged."""
    return models.tokenizer.decode(text.token_ids, skip_special_tokens=True)


def is_right(models: Models, text: Text, problems: Sequence[dict[str, Any]]) -> bool:
    return task.is_right(words(models, text), problems[text.problem]["answer"])


def finished_or_all(texts: Sequence[Any]) -> Sequence[Any]:
    """Those that were not cut off; all, if all were."""
    return [text for text in texts if text.is_finished] or texts


def best(texts: Sequence[Text], score: str) -> Text:
    """The text with the largest sum of `score`, the first of equals; one that was cut off only if all were."""
    return max(finished_or_all(texts), key=lambda text: getattr(text.sums, score))


def right_texts(
    models: Models, problems: Sequence[dict[str, Any]], candidates: int, draw: int, wanted: int
) -> list[Text]:
    """Theta's right texts for the first problems that have one among so many candidates.

    The first candidates are the same whatever `candidates` is.

    Raises:
        ValueError: `problems` are too few.
    """
    kept: list[Text] = []
    for first in range(0, len(problems), BATCH):
        left = list(range(first, min(first + BATCH, len(problems))))
        found = {}
        for candidate in range(candidates):
            generator = torch.Generator().manual_seed(seed_of(draw, f"theta {first} {candidate}"))
            for text in draw_texts(models, problems, left, "theta", generator):
                if is_right(models, text, problems):
                    found[text.problem] = text
            left = [number for number in left if number not in found]
        kept += [found[number] for number in sorted(found)]
        if len(kept) >= wanted:
            return kept[:wanted]
    raise ValueError(f"{len(problems)} problems have {len(kept)} right texts, {wanted} are needed; give more problems")


def candidates_of(
    models: Models, problems: Sequence[dict[str, Any]], source: Source, draw: int, epsilon: float | None, rows: int
) -> list[list[Text]]:
    """The first `rows` problems' candidates by a source's rule: one each, or `CANDIDATES` where a source keeps one of them."""
    is_chosen = any(one.drawn == source.drawn and one.kept not in ("first", "right") for one in SOURCES.values())
    groups: list[list[Text]] = [[] for _ in range(rows)]
    for candidate in range(CANDIDATES if is_chosen else 1):
        generator = torch.Generator().manual_seed(seed_of(draw, f"{source.drawn} {source.alpha} {candidate}"))
        for text in draw_texts(models, problems, range(rows), source.drawn, generator, source.alpha, epsilon):
            groups[text.problem].append(text)
    return groups


def sources_of_draw(
    models: Models,
    problems: Sequence[dict[str, Any]],
    draw: int,
    epsilons: Mapping[str, float],
    names: Sequence[str],
    rows: int,
) -> Iterator[tuple[str, list[Text]]]:
    """The rows of each source of a draw. Sources of one rule share their candidates.

    Args:
        problems: as `problems.training` gives them, more than `rows` where a source keeps right texts.
        epsilons: the bound of the KL in nats, for the sources that are drawn by `kl_budget`.
    """
    groups: dict[tuple[str, float | None, float | None], list[list[Text]]] = {}
    for name in names:
        source = SOURCES[name]
        if source.kept == "right":
            yield name, right_texts(models, problems, source.candidates, draw, rows)
            continue
        rule = (source.drawn, source.alpha, epsilons.get(name))
        if rule not in groups:
            groups[rule] = candidates_of(models, problems, source, draw, epsilons.get(name), rows)
        if source.kept == "first":
            yield name, [group[0] for group in groups[rule]]
        else:
            yield name, [best(group[: source.candidates], source.kept) for group in groups[rule]]
