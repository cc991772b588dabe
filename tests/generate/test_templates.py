"""A row becomes two prompts, and nothing privileged reaches theta's."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_optimal_sampling.data.generate.errors import RowError, SettingsError
from vllm_optimal_sampling.data.generate.templates import Templates

ROW = {"problem": "What is 1 + 1?", "answer": "2", "reference answer": "two", "nothing": None, "steps": [1, 2]}


def test_text_with_system_prompts() -> None:
    templates = Templates(
        "Q: {{ problem }}",
        "Q: {{ problem }}\nA: {{ answer }}",
        teacher_system_prompt="Explain.",
        theta_system_prompt="Think.",
    )
    prompts = templates.render(ROW)
    assert prompts.teacher == "Explain.\n\nQ: What is 1 + 1?\nA: 2"
    assert prompts.theta == "Think.\n\nQ: What is 1 + 1?"
    assert prompts.privileged_context == "2"


def test_chat_with_system_prompts() -> None:
    templates = Templates("{{ problem }}", "{{ problem }} {{ answer }}", chat=True, theta_system_prompt="Think.")
    prompts = templates.render(ROW)
    assert prompts.teacher == [{"role": "user", "content": "What is 1 + 1? 2"}]
    assert prompts.theta == [{"role": "system", "content": "Think."}, {"role": "user", "content": "What is 1 + 1?"}]


def test_a_column_of_messages() -> None:
    messages = [
        {"role": "system", "content": "Be kind.", "name": None},
        {"role": "user", "content": "Hello", "name": None},
        {"role": "assistant", "content": "Hi", "name": None},
        {"role": "user", "content": "1 + 1?", "name": None},
    ]
    templates = Templates(None, "{{ content }} ({{ answer }})", chat=True, chat_column="messages")
    prompts = templates.render({"messages": messages, "answer": "2"})
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    assert prompts.theta == plain
    assert prompts.teacher == [*plain[:-1], {"role": "user", "content": "1 + 1? (2)"}]
    assert prompts.privileged_context == "2"
    own = Templates(None, chat=True, chat_column="messages", theta_system_prompt="Think.")
    assert own.render({"messages": messages}).theta[0] == {"role": "system", "content": "Think."}


@pytest.mark.parametrize(
    "messages",
    [None, "text", [], [{"role": "user"}], [{"role": "user", "content": [1]}], [{"role": "assistant", "content": "x"}]],
)
def test_a_column_that_holds_no_messages(messages: object) -> None:
    templates = Templates(None, chat=True, chat_column="messages")
    with pytest.raises(RowError, match="column 'messages'"):
        templates.render({"messages": messages})


@pytest.mark.parametrize(
    "theta",
    [
        "{{ problem }} {{ answer }}",
        "{% if problem %}{{ answer }}{% endif %}",
        "{% set hint = answer %}{{ hint }}",
        "{% macro show() %}{{ answer }}{% endmacro %}{{ show() }}",
        "{% for step in answer %}{{ step }}{% endfor %}",
    ],
)
def test_a_privileged_column_in_thetas_template_is_refused(theta: str) -> None:
    with pytest.raises(SettingsError, match="theta_template renders the privileged column answer"):
        Templates(theta, "{{ answer }}", privileged=("answer",))


@pytest.mark.parametrize(
    "theta",
    [
        '{{ row["answer"] }}',
        "{{ row.answer }}",
        "{% set name = 'ans' ~ 'wer' %}{{ row[name] }}",
        "{% set name = 'ans' ~ 'wer' %}{{ problem }}{{ row.get(name, '') }}",
        "{{ problem }}{{ row.get('answer', '') }}",
        "{% set all = row %}{{ all.answer }}",
        "{{ problem }}{{ row['answer'] | default('') }}",
    ],
)
def test_a_privileged_column_is_not_found_in_another_way(theta: str) -> None:
    with pytest.raises(SettingsError, match="theta_template renders the privileged column answer"):
        Templates(theta, "{{ answer }}", privileged=("answer",)).render(ROW)


@pytest.mark.parametrize(
    "theta",
    [
        "{{ row }}",
        "{{ row.items() | list }}",
        "{{ row.values() | join(' ') }}",
        "{% for name in row %}{{ row[name] }} {% endfor %}",
        "{{ problem }}{{ row.copy() }}",
    ],
)
def test_the_whole_row_is_without_it(theta: str) -> None:
    row = {"problem": "1 + 1", "answer": "the secret"}
    prompts = Templates(theta, "{{ row }}", privileged=("answer",)).render(row)
    assert "1 + 1" in prompts.theta
    assert "secret" not in prompts.theta
    assert "the secret" in prompts.teacher


UNPROTECTED: list[tuple[str | None, str | None, dict[str, Any], str]] = [
    (
        "{{ problem }} {{ answer }}",
        "{{ problem }} {{ answer }}",
        {},
        r"nothing that .* shown \(answer, problem\) is hidden",
    ),
    (
        "{{ problem }} {{ answer }}",
        "{{ problem }}: {{ answer }}",
        {"privileged": ("steps",)},
        "names steps, which teacher",
    ),
    ("{{ row.problem }} {{ row['answer'] }}", "{{ problem }} {{ answer }}", {}, "is hidden from theta"),
    ("{{ problem }}", "{{ row }}", {}, "teacher_template uses the whole row"),
    ("{{ problem }}", "{% for name in row %}{{ row[name] }}{% endfor %}", {}, "teacher_template uses the whole row"),
    ("{{ problem }}", "{{ problem }}", {}, "is hidden from theta"),
    ("{{ problem }} {{ Answer }}", "{{ problem }} {{ answer }}", {}, "renders the privileged column Answer"),
    ("{{ problem }}", None, {"privileged": ("answer",)}, "without a teacher_template"),
    (None, "{{ content }}!", {"chat": True, "chat_column": "messages"}, "is hidden from theta"),
    (
        None,
        "{{ content }} {{ answer }}",
        {"chat": True, "chat_column": "messages", "privileged": ("messages",)},
        "renders",
    ),
    ("Q: {problem}", "Q: {{ problem }} {{ answer }}", {}, "theta_template reads no column.*two braces"),
    ("Q: {{ problem }}", "Q: {problem} {answer}", {}, "teacher_template reads no column"),
]
"""Theta's template, the teacher's, other settings: theta would be shown all that the teacher is, or nobody knows."""


@pytest.mark.parametrize(("theta", "teacher", "options", "reason"), UNPROTECTED)
def test_nothing_privileged_is_refused(
    theta: str | None, teacher: str | None, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SettingsError, match=reason):
        Templates(theta, teacher, **options)


def test_nothing_privileged_may_be_asked_for() -> None:
    both = "{{ problem }} {{ answer }}"
    assert Templates(both, f"{both}!", privileged=()).render(ROW).theta == "What is 1 + 1? 2"
    assert Templates(both).render(ROW).teacher == "What is 1 + 1? 2"


@pytest.mark.parametrize(
    "teacher", ['{{ row["answer"] }}', "{{ row.answer }}", "{{ row.get('answer') }}", "{{ answer or 'none' }}"]
)
def test_what_only_the_teacher_names_is_privileged_however_it_names_it(teacher: str) -> None:
    prompts = Templates("{{ row }}", teacher).render(
        {"problem": "1 + 1", "answer": "the secret", " ANSWER": "the secret"}
    )
    assert prompts.teacher == "the secret"
    assert "1 + 1" in prompts.theta
    assert "secret" not in prompts.theta


def test_a_column_called_content_is_privileged_like_any_other() -> None:
    prompts = Templates("{{ row }}", "{{ problem }} {{ content }}").render(
        {"problem": "1 + 1", "content": "the secret"}
    )
    assert "secret" not in prompts.theta


def test_templates_are_sandboxed() -> None:
    for text in (
        "{{ problem }}{{ ''.__class__.__mro__ }}",
        "{{ problem.__init__.__globals__ }}",
        "{{ steps.append(3) }}",
    ):
        with pytest.raises(RowError, match="theta's template failed"):
            Templates(text).render(ROW)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ question }}", "theta's template failed: 'question' is undefined"),
        ("{{ nothing }}", "theta's template failed: a column that it writes is null"),
        ("{{ problem + 1 }}", "theta's template failed: can only concatenate str"),
        ("{{ problem }}{{ 1 / 0 }}", "theta's template failed: division by zero"),
        ("{% if not problem %}x{% endif %}", "theta's template gives an empty prompt"),
    ],
)
def test_a_row_that_does_not_fit(text: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        Templates(text).render(ROW)
    assert str(caught.value).startswith(reason)


def test_no_template() -> None:
    with pytest.raises(SettingsError, match=r"theta_template is not a Jinja template: .* \(line 2\)"):
        Templates("\n{{ problem")


@pytest.mark.parametrize(
    ("options", "context"),
    [
        ({"privileged": ("answer",)}, "2"),
        ({"privileged": ("answer", "steps")}, "answer: 2\nsteps: [1, 2]"),
        ({"privileged": ("answer",), "privileged_template": "It is {{ answer }}."}, "It is 2."),
        ({"privileged": ()}, None),
        ({}, "reference: two"),
    ],
)
def test_privileged_context(options: dict[str, Any], context: str | None) -> None:
    row = ROW | {"reference": "two"}
    teacher = "{{ problem }} {{ reference }} {{ answer }}" if options else "{{ problem }} {{ reference }}"
    found = Templates("{{ problem }}", teacher, **options).render(row).privileged_context
    assert found == (context if options else "two")


def test_json_in_a_prompt_is_not_escaped_for_html() -> None:
    assert Templates("{{ row['a'] | tojson }}").render({"a": ["<ü>&'"]}).theta == '["<ü>&\'"]'
