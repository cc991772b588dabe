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
    "theta", ['{{ row["answer"] }}', "{{ row.answer }}", "{% set name = 'ans' ~ 'wer' %}{{ row[name] }}"]
)
def test_a_privileged_column_is_not_found_in_another_way(theta: str) -> None:
    templates = Templates(theta, "{{ answer }}", privileged=("answer",))
    with pytest.raises(SettingsError, match="theta_template renders the privileged column answer"):
        templates.render(ROW)


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


def test_templates_are_sandboxed() -> None:
    for text in ("{{ ''.__class__.__mro__ }}", "{{ problem.__init__.__globals__ }}", "{{ steps.append(3) }}"):
        with pytest.raises(RowError, match="theta's template failed"):
            Templates(text).render(ROW)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ question }}", "theta's template failed: 'question' is undefined"),
        ("{{ nothing }}", "theta's template failed: a column that it writes is null"),
        ("{{ problem + 1 }}", "theta's template failed: can only concatenate str"),
        ("{{ 1 / 0 }}", "theta's template failed: division by zero"),
        ("{% if not problem %}x{% endif %}", "theta's template gives an empty prompt"),
    ],
)
def test_a_row_that_does_not_fit(text: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        Templates(text).render(ROW)
    assert str(caught.value).startswith(reason)


def test_no_template() -> None:
    with pytest.raises(SettingsError, match=r"theta_template is no Jinja template: .* \(line 2\)"):
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
