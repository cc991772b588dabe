"""Greedy questions with known answers, to ask a server while something else goes wrong around them.

The answers are brute force: float64 forwards of both models of the example pair by transformers, a token at a time.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from task import problems, teacher_messages, theta_messages

from support.cases import Case
from support.example_pair import TEACHER, THETA, chat_tokens, up_to_end
from support.reference_models import Reference, greedy_tokens

MAX_TOKENS = 16

ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},
    {"alpha_method": "fixed", "alpha": 0.0},
    {"alpha_method": "fixed", "alpha": 1.0},
    {"alpha_max": 0.5},
    {"optimal_sampling": False},
    {"alpha_min": 0.25, "alpha_max": 0.75},
)


@dataclass(frozen=True)
class Question:
    """A body for one of the server's routes, and the tokens that have to come back."""

    path: str
    body: dict[str, Any]
    answer: tuple[int, ...]


def make_questions(
    count: int, max_tokens: int = MAX_TOKENS, seed: int = 0, reference: Reference | None = None
) -> list[Question]:
    """Questions over different problems and arguments, half of them chats, half completions with tokens.

    Args:
        count: how many.
        max_tokens: of each answer; an end of text comes earlier.
        seed: of the problems.
        reference: both models in float64; loaded here by default.
    """
    reference = reference or Reference(TEACHER, THETA)
    rng = random.Random(seed)
    stream = problems("story", "heldout", seed)
    questions = []
    for number in range(count):
        problem = next(stream)
        arguments = ARGUMENTS[number % len(ARGUMENTS)]
        own_prompt = arguments.get("optimal_sampling", True)
        teacher_chat = teacher_messages(problem.problem, problem.answer)
        theta_chat = theta_messages(problem.problem)
        case = Case(
            chat_tokens(TEACHER, teacher_chat), chat_tokens(THETA, theta_chat) if own_prompt else None, arguments
        )
        answer = up_to_end(greedy_tokens(reference, case, max_tokens))
        body: dict[str, Any] = {
            "model": "teacher",
            "temperature": 0,
            "max_tokens": max_tokens,
            "return_token_ids": True,
            "vllm_xargs": dict(arguments),
        }
        if rng.random() < 0.5:
            path = "/v1/chat/completions"
            body["messages"] = teacher_chat
            if own_prompt:
                body["vllm_xargs"]["theta_messages"] = json.dumps(theta_chat)
        else:
            path = "/v1/completions"
            body["prompt"] = case.prompt
            if own_prompt:
                body["vllm_xargs"]["theta_prompt_token_ids"] = case.theta_prompt
        questions.append(Question(path, body, tuple(answer)))
    return questions


def tokens_of(answer: dict[str, Any]) -> list[int]:
    """The tokens of the only choice of a response."""
    (choice,) = answer["choices"]
    return list(choice["token_ids"])
