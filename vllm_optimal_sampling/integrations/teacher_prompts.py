"""The teacher's prompt of a training row: what theta reads, and what only the teacher may see."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm_optimal_sampling.argument_checks import ArgumentError

Prompt = str | list[dict[str, Any]]
"""A text, or chat messages."""
Row = Mapping[str, Any]
Privileged = str | Callable[[Row], Prompt]


def _written(value: Any) -> Any:
    if value is None:
        raise TemplateError("a column of it is null")
    return value


class TeacherPrompts:
    """Makes the teacher's prompt of a row.

    Args:
        privileged: a column's name: its value is put after the prompt, an empty line between them. Or a Jinja template over
            the row's columns, such as `"{{ prompt }}\\n\\nThe answer: {{ answer }}"`. In a chat both take the content of the
            last message, a user's, for `prompt`, and stand in its place. Or a function of the row that returns the whole
            prompt, as text or messages.

    Raises:
        ArgumentError: (a ValueError) it is none of these.

    """

    def __init__(self, privileged: Privileged) -> None:
        if not isinstance(privileged, str):
            if not callable(privileged):
                raise ArgumentError(
                    "privileged",
                    f"privileged={privileged!r} is no column's name, Jinja template or function of a row",
                )
            self._make = privileged
            return
        self._make = self._render
        self._column = None if "{{" in privileged or "{%" in privileged else privileged
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, finalize=_written, keep_trailing_newline=True
        )
        try:
            self._template = environment.from_string(
                privileged if self._column is None else "{{ prompt }}\n\n{{ row[column] }}"
            )
        except TemplateError as error:
            raise ArgumentError("privileged", f"privileged={privileged!r} is not a Jinja template: {error}") from None

    def of(self, row: Row) -> Prompt:
        """The teacher's prompt.

        Raises:
            ArgumentError: a column is missing or null, or a chat does not end with a text of the user's.

        """
        return self._make(row)

    def _render(self, row: Row) -> Prompt:
        prompt = row["prompt"]
        if isinstance(prompt, str):
            return self._text(row, prompt)
        last = prompt[-1]
        if last.get("role") != "user" or not isinstance(last.get("content"), str):
            raise ArgumentError(
                "privileged",
                "a chat does not end with a text of the user's to put the privileged part into; give a function",
            )
        return [*prompt[:-1], {**last, "content": self._text(row, last["content"])}]

    def _text(self, row: Row, prompt: str) -> str:
        if self._column is not None and self._column not in row:
            raise ArgumentError(
                "privileged",
                f"privileged={self._column!r} is no column of the data set; it has {', '.join(row)}",
            )
        try:
            return self._template.render({**row, "prompt": prompt, "row": row, "column": self._column})
        except TemplateError as error:
            raise ArgumentError("privileged", f"the teacher's prompt of a row cannot be written: {error}") from None


class RowsByPrompt:
    """Finds the rows of data sets again by their prompts, which is all that a trainer hands to its rollouts.

    Args:
        datasets: those that have columns and can be indexed; others, and None, are left out.
    """

    def __init__(self, datasets: list[Any]) -> None:
        self._places: dict[str, list[tuple[Any, int]]] = {}
        for dataset in datasets:
            if hasattr(dataset, "__getitem__") and "prompt" in (getattr(dataset, "column_names", None) or ()):
                for number, prompt in enumerate(dataset["prompt"]):
                    self._places.setdefault(_key(prompt), []).append((dataset, number))

    def teacher_prompt(self, prompt: Prompt, prompts: TeacherPrompts) -> Prompt:
        """What the teacher reads where theta reads `prompt`.

        Raises:
            ArgumentError: several rows have this prompt and another one for the teacher.

        """
        # Nothing is known of the rows of a stream but their prompts: a function may need no more.
        places = self._places.get(_key(prompt))
        rows = [{"prompt": prompt}] if places is None else [dataset[number] for dataset, number in places]
        made = [prompts.of({**row, "prompt": prompt}) for row in rows]
        if any(other != made[0] for other in made):
            raise ArgumentError(
                "privileged",
                f"{len(made)} rows of the data set have the prompt {str(prompt)[:60]!r}... and different ones for the teacher, "
                "and a trainer says no more of a row than its prompt; make the prompts differ",
            )
        return made[0]


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)
