"""Theta's chat as a request carries it, `theta_messages`: a list of messages, or that list as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_optimal_sampling.argument_checks import ArgumentError, check_text, kind_of, shown, wrong_type

DEEPEST_MESSAGE = 16
"""Levels of lists and objects that `theta_messages` may have. A chat has 2, one with tool calls about 6."""


def parse_messages(text: str) -> list[dict[str, Any]]:
    """Theta's chat from its JSON, checked.

    Returns:
        Messages with `role`, `content` (text; parts are joined by newlines, as vLLM does), and what else they had.

    Raises:
        ArgumentError: not JSON, not a list of messages, a part that is not text, nested too deeply.

    """
    try:
        messages = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ArgumentError(
            "theta_messages",
            f"theta_messages={shown(text)} is not JSON ({error}); "
            'give a list of messages such as [{"role": "user", "content": "..."}]',
        ) from None
    if "\\ud" in text.lower():  # an escape may hide half a surrogate pair
        check_text("theta_messages", json.dumps(messages, ensure_ascii=False))
    return _check_messages(messages)


def messages_as_json(messages: object) -> str | None:
    """Theta's chat as JSON text, checked; None where there is none.

    Raises:
        ArgumentError: as `parse_messages`, or something in it cannot be written as JSON.

    """
    if messages is None:
        return None
    if isinstance(messages, str):
        check_text("theta_messages", messages)
        parse_messages(messages)
        return messages
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        raise wrong_type("theta_messages", messages, "a list of messages or that list as JSON text")
    _check_messages(list(messages))
    try:
        text = json.dumps([dict(message) for message in messages], ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError("theta_messages", f"theta_messages cannot be written as JSON ({error})") from None
    check_text("theta_messages", text)
    return text


def _check_messages(messages: object) -> list[dict[str, Any]]:
    wanted = 'give a list of messages such as [{"role": "user", "content": "..."}]'
    if not isinstance(messages, list):
        raise ArgumentError("theta_messages", f"theta_messages is {kind_of(messages)}, not a list; {wanted}")
    if not messages:
        raise ArgumentError("theta_messages", f"theta_messages is empty; {wanted}, or leave it out")
    _check_depth(messages)
    checked = []
    for number, message in enumerate(messages):
        name = f"theta_messages[{number}]"
        if not isinstance(message, Mapping):
            raise ArgumentError("theta_messages", f"{name} is {kind_of(message)}, not a message; {wanted}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ArgumentError("theta_messages", f"{name} has role {shown(role)}; give a name such as 'user'")
        checked.append({**message, "content": _content(name, message)})
    return checked


def _content(name: str, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and content:
        parts = [part["text"] for part in content if _is_text_part(part)]
        if len(parts) == len(content):
            return "\n".join(parts)
    raise ArgumentError(
        "theta_messages",
        f"{name} has content {shown(content)}; give text, or a list of parts such as "
        '{"type": "text", "text": "..."} (theta reads text only)',
    )


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_depth(value: object) -> None:
    """Without recursion, so that no nesting is too deep to be refused."""
    level = [value]
    for _ in range(DEEPEST_MESSAGE + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, (Mapping, list, tuple))
            for child in (parent.values() if isinstance(parent, Mapping) else parent)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ArgumentError:
    return ArgumentError(
        "theta_messages", f"theta_messages is nested more than {DEEPEST_MESSAGE} levels deep; flatten it"
    )


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")
