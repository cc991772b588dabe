"""A row becomes two prompts: the teacher's, and theta's, which is made without the privileged columns.

Templates are Jinja2 in its sandbox, with a row's columns as variables and as `row["any name"]`. A column that is
missing or null is an error of the row, never an empty word in a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm_optimal_sampling.data.generate.errors import RowError, SettingsError
from vllm_optimal_sampling.data.generate.template_columns import TemplateColumns, columns_of

Message = dict[str, Any]
Prompt = str | list[Message]
"""A text, or chat messages."""


@dataclass(frozen=True)
class Prompts:
    """What one row is put to both models as."""

    teacher: Prompt
    theta: Prompt
    privileged_context: str | None
    """What only the teacher saw; None where nothing is privileged."""


class _NullError(TemplateError):
    """A template writes a null."""


class _PublicRow(dict[str, Any]):
    """A row as theta's template sees it. Asking it for a privileged column ends the run, since every row would."""

    def __init__(self, columns: Mapping[str, Any], hidden: frozenset[str]) -> None:
        super().__init__({name: value for name, value in columns.items() if _folded(name) not in hidden})
        self._hidden = hidden

    def __missing__(self, name: str) -> Any:
        if _folded(name) in self._hidden:
            raise _renders_privileged([name])
        raise KeyError(name)

    def get(self, name: str, default: Any = None) -> Any:
        return default if name not in self and _folded(name) not in self._hidden else self[name]


def _folded(name: object) -> str:
    """A column's name without what tells `Answer ` from `answer`: whoever hides one of them means both."""
    return " ".join(str(name).split()).casefold()


def _renders_privileged(names: list[str]) -> SettingsError:
    return SettingsError(
        f"theta_template renders the privileged column {', '.join(names)}, which theta must not see; take it out of the "
        "template, or out of --privileged"
    )


def template_text(name: str, given: str) -> str:
    """A template's text, read from the file where a file is named.

    Raises:
        SettingsError: it is neither a template nor a file.

    """
    if any(sign in given for sign in "{}\n"):
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{name}={given!r} is neither a Jinja template nor a file that can be read: {error}"
        ) from None


class Templates:
    """Makes prompts of rows.

    Args:
        theta: theta's template as text; None: `chat_column` is put to theta as it is.
        teacher: the teacher's; None: the same as theta's.
        privileged: columns that theta must not see, with those whose names differ only in case and spaces. None: those
            that only the teacher's template names. Empty: none, and both templates may read the same columns.
        privileged_template: how `Prompts.privileged_context` is written; None: the column's value, or a line
            `name: value` for each of several.
        chat: prompts are chat messages, with the rendered text as the user's; else they are text.
        chat_column: a column with chat messages, up to a user's, whose content the templates replace and find as
            `content`.
        teacher_system_prompt: the teacher's first message, or in raw text what stands before an empty line.
        theta_system_prompt: the same for theta.

    Raises:
        SettingsError: a template is not Jinja, a model's reads no column, theta's renders a privileged column, or nothing is
            privileged although the teacher has a template of its own.

    """

    def __init__(
        self,
        theta: str | None,
        teacher: str | None = None,
        *,
        privileged: tuple[str, ...] | None = None,
        privileged_template: str | None = None,
        chat: bool = False,
        chat_column: str | None = None,
        teacher_system_prompt: str | None = None,
        theta_system_prompt: str | None = None,
    ) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=_no_null,
        )
        # Jinja's own escapes for HTML.
        self._environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        self._chat, self._chat_column = chat, chat_column
        self._system_prompts = {"teacher": teacher_system_prompt, "theta": theta_system_prompt}
        given = {"theta": theta, "teacher": teacher, "privileged": privileged_template}
        self.columns = {
            name: columns_of(f"{name}_template", text, self._environment)
            for name, text in given.items()
            if text is not None
        }
        """What each template reads, by `theta`, `teacher` and `privileged`."""
        self._check_columns()
        self.privileged = self._default_privileged() if privileged is None else privileged
        """The columns that theta does not see."""
        self._hidden = frozenset(map(_folded, self.privileged))
        shown = self._theta_columns | {chat_column or ""}
        if shown_anyway := sorted(name for name in shown if _folded(name) in self._hidden):
            raise _renders_privileged(shown_anyway)
        self._check_privileged(privileged)
        self._theta = None if theta is None else self._environment.from_string(theta)
        self._teacher = self._theta if teacher is None else self._environment.from_string(teacher)
        self._privileged = None if privileged_template is None else self._environment.from_string(privileged_template)

    @property
    def _theta_columns(self) -> frozenset[str]:
        """Columns that theta's template names; `content` is not one beside a column of messages."""
        return self._named("theta")

    @property
    def variables(self) -> frozenset[str]:
        """Names that a template may use and that are no columns."""
        return frozenset() if self._chat_column is None else frozenset({"content"})

    def _named(self, template: str) -> frozenset[str]:
        return self.columns.get(template, TemplateColumns()).names - self.variables

    def _check_columns(self) -> None:
        for name, columns in self.columns.items():
            if name != "privileged" and not columns.names and not columns.whole_row:
                raise SettingsError(
                    f"{name}_template reads no column, so that it is the same for every row; a column is written "
                    "{{ problem }}, with two braces"
                )

    def _default_privileged(self) -> tuple[str, ...]:
        """What only the teacher's template names."""
        if "teacher" not in self.columns:
            return ()
        if self.columns["teacher"].whole_row:
            raise SettingsError(
                "teacher_template uses the whole row, so that nothing tells which columns theta must not see; name them "
                "with --privileged"
            )
        return tuple(sorted(self._named("teacher") - self._theta_columns))

    def _check_privileged(self, given: tuple[str, ...] | None) -> None:
        """Refuse a run in which theta is shown all that the teacher is, unless that was asked for."""
        teacher = self.columns.get("teacher")
        if teacher is None:
            if self.privileged:
                raise SettingsError(
                    f"privileged={', '.join(self.privileged)} is for the teacher alone, and without a teacher_template "
                    "the teacher is not shown it either; give a teacher_template that uses it, or drop --privileged"
                )
            return
        if given == () or teacher.whole_row:
            return
        hidden = {name for name in self._named("teacher") if _folded(name) in self._hidden}
        if not hidden:
            both = ", ".join(sorted(self._named("teacher"))) or "content"
            raise SettingsError(
                f"nothing that the teacher is shown ({both}) is hidden from theta; take what theta must not see out of "
                "theta_template, or give --privileged with no names if both may see the same columns"
                + (f" (--privileged names {', '.join(given)}, which teacher_template does not use)" if given else "")
            )

    def render(self, columns: Mapping[str, Any]) -> Prompts:
        """The prompts of a row.

        Raises:
            RowError: a column is missing or null, or a template fails.
            SettingsError: theta's template asks for a privileged column in a way that only shows now.

        """
        theta = self._prompt("theta", self._theta, columns, _PublicRow(columns, self._hidden))
        teacher = self._prompt("teacher", self._teacher, columns, dict(columns))
        return Prompts(teacher, theta, self._privileged_context(columns))

    def _prompt(
        self, model: str, template: Template | None, columns: Mapping[str, Any], visible: dict[str, Any]
    ) -> Prompt:
        messages = self._messages(columns)
        variables = {**visible, "row": visible}
        if messages:
            variables["content"] = messages[-1]["content"]
        whose = "theta's" if model == "theta" else "the teacher's"
        text = None if template is None else _rendered(whose, template, variables)
        system = self._system_prompts[model]
        if not self._chat:
            assert text is not None, "settings ask for a template where there is no chat"
            return text if system is None else f"{system}\n\n{text}"
        if not messages:
            messages = [{"role": "user", "content": text}]
        elif text is not None:
            messages[-1] = {**messages[-1], "content": text}
        if system is not None:
            messages = [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]
        return messages

    def _messages(self, columns: Mapping[str, Any]) -> list[Message]:
        if self._chat_column is None:
            return []
        given = columns.get(self._chat_column)
        wanted = 'a list of messages such as [{"role": "user", "content": "..."}]'
        if not isinstance(given, list) or not given:
            raise RowError(f"column {self._chat_column!r} is not {wanted}")
        for message in given:
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise RowError(f"column {self._chat_column!r} is not {wanted}")
            if not isinstance(message["content"], str):
                raise RowError(f"column {self._chat_column!r} has content that is not text")
        if given[-1]["role"] != "user":
            raise RowError(
                f"column {self._chat_column!r} ends with a message of {given[-1]['role']!r}, not of the user"
            )
        # Arrow fills in nulls for keys that other rows' messages have.
        return [{name: value for name, value in message.items() if value is not None} for message in given]

    def _privileged_context(self, columns: Mapping[str, Any]) -> str | None:
        if self._privileged is not None:
            return _rendered("the privileged context's", self._privileged, {**columns, "row": dict(columns)})
        known = [name for name in self.privileged if columns.get(name) is not None]
        if not known:
            return None
        if len(self.privileged) == 1:
            return _as_text(columns[known[0]])
        return "\n".join(f"{name}: {_as_text(columns[name])}" for name in known)


def _no_null(value: Any) -> Any:
    if value is None:
        raise _NullError("a column that it writes is null")
    return value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _rendered(whose: str, template: Template, variables: dict[str, Any]) -> str:
    try:
        text = template.render(variables)
    except SettingsError:
        raise
    except Exception as error:  # a template may raise whatever its expressions do with a row's values
        raise RowError(f"{whose} template failed: {error or type(error).__name__}") from None
    if not text.strip():
        raise RowError(f"{whose} template gives an empty prompt")
    return text
