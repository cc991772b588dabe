"""The prompts of every benchmark: arithmetic word problems of short, medium and long form, the same for all methods."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

PAIR = Path(__file__).parent.parent / "examples" / "pair"
sys.path.insert(0, str(PAIR))

from task import problems, teacher_messages, theta_messages  # noqa: E402  examples/pair


@dataclass(frozen=True)
class Prompt:
    """Token ids for both models. The teacher's has the answer, theta's has not."""

    teacher: list[int]
    theta: list[int]


def forms(seed: int) -> Any:
    """Problems without end, a short one (one change of a count), a medium one (two), a long one (three), and again."""
    stories, longer = problems("story", "heldout", seed), problems("longer", "heldout", seed)
    while True:
        for changes in (1, 2):
            yield next(story for story in stories if len(story.steps) == changes)
        yield next(longer)


def make_prompts(tokenizer: Any, count: int, seed: int) -> list[Prompt]:
    """`count` prompts; another seed gives other problems, so that no batch finds its prompts cached."""

    def ids(messages: list[dict[str, str]]) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer.encode(text, add_special_tokens=False)

    return [
        Prompt(ids(teacher_messages(one.problem, one.answer)), ids(theta_messages(one.problem)))
        for one in islice(forms(seed), count)
    ]
