"""The output's rows: their own columns beside the input's, and how they are written."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

OWN_COLUMNS = (
    "custom_id",
    "sample",
    "prompt",
    "privileged_context",
    "completion",
    "messages",
    "finish_reason",
    "prompt_token_ids",
    "completion_token_ids",
    "optimal_sampling",
    "candidates",
    "error",
)
"""Columns that the output gives; the input's of the same name are kept as `input_...`."""


def input_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The input's columns as the output has them: a name that is taken gets `input_` before it."""
    named = {}
    for name, value in columns.items():
        own = name
        while own in OWN_COLUMNS or (own != name and own in columns):
            own = f"input_{own}"
        named[own] = value
    return named


def input_digest(row: Mapping[str, Any]) -> bytes:
    """What tells one row of the input from another, from a row of the output: its columns, but for the output's own."""
    columns = json.loads(line_of({name: value for name, value in row.items() if name not in OWN_COLUMNS}))
    text = json.dumps(columns, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON, UTF-8, with its newline. What JSON has no number for becomes null."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_json)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False, default=_as_json)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _as_json(value: Any) -> Any:
    """Dates, decimals and the like as text, bytes in base64: columns of parquet that JSON has no type for."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
