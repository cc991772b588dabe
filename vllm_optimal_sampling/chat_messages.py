"""Theta's chat as a request carries it, `theta_messages`: a list of messages, or that list as JSON text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_optimal_sampling.argument_checks import ArgumentError, check_text, kind_of, shown, wrong_type
from vllm_optimal_sampling.json_arguments import check_depth, read_json, write_json

WANTED = 'give a list of messages such as [{"role": "user", "content": "..."}]'


def parse_messages(text: str) -> list[dict[str, Any]]:
    """Theta's chat from its JSON, checked.

    Returns:
        Messages with `role`, `content` (text; parts are joined by newlines, as vLLM does), and what else they had.

    Raises:
        ArgumentError: not JSON, not a list of messages, a part that is not text, nested too deeply.

    """
    return _check_messages(read_json("theta_messages", text, WANTED))


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
    checked = list(messages)
    _check_messages(checked)
    return write_json("theta_messages", [dict(message) for message in checked])


def _check_messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list):
        raise ArgumentError("theta_messages", f"theta_messages is {kind_of(messages)}, not a list; {WANTED}")
    if not messages:
        raise ArgumentError("theta_messages", f"theta_messages is empty; {WANTED}, or leave it out")
    check_depth("theta_messages", messages)
    checked = []
    for number, message in enumerate(messages):
        name = f"theta_messages[{number}]"
        if not isinstance(message, Mapping):
            raise ArgumentError("theta_messages", f"{name} is {kind_of(message)}, not a message; {WANTED}")
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
