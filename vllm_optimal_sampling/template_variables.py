"""What a chat template reads beside the messages, such as `enable_thinking`: an object, or that object as JSON text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_optimal_sampling.argument_checks import ArgumentError, shown, wrong_type
from vllm_optimal_sampling.json_arguments import check_depth, read_json, write_json

NOT_OF_TEMPLATES = (
    *("chat_template", "conversation", "conversations", "messages", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
)
"""Names that no template reads as variables: they say which template is taken, what of a chat, and how it is tokenised.
`tools` and `documents`, which templates do read, are not among them."""


def _wanted(name: str) -> str:
    whose = "the teacher's" if name.startswith("teacher") else "theta's"
    return f'give what {whose} template reads, such as {{"enable_thinking": false}}'


def check_variables(name: str, variables: object, remedy: str = "drop it") -> Mapping[str, Any]:
    """The variables of the argument `name`.

    Args:
        name: of the argument.
        variables: its value.
        remedy: what to do with one of `NOT_OF_TEMPLATES`, for the error.

    Raises:
        ArgumentError: they are not an object, have a name that no template reads, or are nested too deeply.

    """
    if not isinstance(variables, Mapping) or not all(isinstance(key, str) for key in variables):
        raise ArgumentError(name, f"{name}={shown(variables)} is not an object; {_wanted(name)}")
    if reserved := sorted(set(variables) & set(NOT_OF_TEMPLATES)):
        raise ArgumentError(name, f"{name} has {', '.join(reserved)}, which is no variable of a template; {remedy}")
    check_depth(name, variables)
    return variables


def parse_variables(name: str, text: str) -> dict[str, Any]:
    """The variables from their JSON, checked.

    Raises:
        ArgumentError: not JSON, not an object, nested too deeply, or a name that no template reads.

    """
    return dict(check_variables(name, read_json(name, text, _wanted(name))))


def variables_as_json(name: str, variables: object) -> str | None:
    """The variables as JSON text, checked and without escapes; None where there are none.

    Raises:
        ArgumentError: as `parse_variables`, or something in them cannot be written as JSON.

    """
    if variables is None:
        return None
    if isinstance(variables, str):
        read = parse_variables(name, variables)
    elif isinstance(variables, Mapping):
        read = dict(check_variables(name, variables))
    else:
        raise wrong_type(name, variables, "an object or that object as JSON text")
    return write_json(name, read) if read else None
