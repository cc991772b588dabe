"""Settings from what a command line and a YAML file say."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.settings import ROW_ARGUMENTS, Settings
from vllm_optimal_sampling.params import ARGUMENTS, ArgumentError, OptimalSamplingParams, closest


def settings_from(mapping: Mapping[str, Any]) -> Settings:
    """Settings from the command line's and the YAML file's values together, with types as Python or YAML has them.

    Raises:
        SettingsError: an unknown key, a value of the wrong type, or one that is refused.

    """
    fields = {entry.name: entry for entry in dataclasses.fields(Settings) if entry.name != "optimal_sampling"}
    values: dict[str, Any] = {}
    of_request: dict[str, Any] = {}
    for key, value in mapping.items():
        name = key.replace("-", "_")
        if name in values or name in of_request:
            raise SettingsError(f"{key!r} is given twice, as {name} and as {name.replace('_', '-')}; give it once")
        if name in ROW_ARGUMENTS:
            raise SettingsError(f"{key!r} cannot be given for all rows: {ROW_ARGUMENTS[name]}")
        if name in fields:  # before the arguments: what theta's template reads goes with each row's chat
            values[name] = value
        elif name in ARGUMENTS:
            of_request[name] = value
        else:
            known = [*fields, *(ARGUMENTS - ROW_ARGUMENTS.keys())]
            raise SettingsError(f"{key!r} is not a setting{closest(name, known)}")
    for name in ("input", "output"):
        if values.get(name) is None:
            raise SettingsError(f"{name} is missing; give --{name}")
    values = {name: _typed(name, str(fields[name].type), value) for name, value in values.items()}
    if "format" not in values and values["output"].endswith(".parquet"):
        values["format"] = "parquet"
    try:
        optimal_sampling = OptimalSamplingParams.from_extra_args(of_request)
    except ArgumentError as error:
        raise SettingsError(error.message) from None
    return Settings(optimal_sampling=optimal_sampling, **values)


def _typed(name: str, kind: str, value: Any) -> Any:
    """A value as its field's annotation wants it; YAML and Python callers give whatever they like."""
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if name == "shard":
        return _shard(value)
    if name == "engine":
        return tuple(engine_words(value)) if isinstance(value, Mapping) else tuple(value)
    wanted: dict[str, tuple[type | tuple[type, ...], str]] = {
        "str": (str, "text"),
        "bool": (bool, "true or false"),
        "int": (int, "a whole number"),
        "float": ((int, float), "a number"),
        "Mapping[str, Any]": (Mapping, "a mapping"),
        "tuple[str, ...]": ((str, list, tuple), "a text or a list of texts"),
    }
    if kind not in wanted:
        return value
    types, words = wanted[kind]
    fits = isinstance(value, types) and (kind == "bool" or not isinstance(value, bool))
    if not fits:
        raise SettingsError(f"{name}={value!r} is not {words}")
    if kind == "tuple[str, ...]":
        texts = (value,) if isinstance(value, str) else tuple(value)
        if not all(isinstance(text, str) for text in texts):
            raise SettingsError(f"{name}={value!r} is not {words}")
        if "" in texts or (name == "input" and not texts):
            raise SettingsError(
                f"{name} has an empty text; give some, or leave it out (a variable of the shell may be unset)"
            )
        return texts
    if value == "":
        raise SettingsError(f"{name} is empty; give some text, or leave it out (a variable of the shell may be unset)")
    if kind == "float" and not math.isfinite(value):
        raise SettingsError(f"{name}={value} is not a finite number")
    return float(value) if kind == "float" else value


def _shard(given: object) -> tuple[int, int]:
    parts = given.split("/") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(str(part).isdecimal() for part in parts):
        raise SettingsError(f"invalid shard {given!r}: expected i/n with 0 <= i < n, such as 0/8")
    index, total = map(int, parts)
    return index, total


def engine_words(options: Mapping[str, Any]) -> list[str]:
    """vLLM's options from a mapping as on the command line, as vLLM reads its own YAML files."""
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is False:
            words.append(f"--no-{option[2:]}")
        elif isinstance(value, list):
            words += [option, *(json.dumps(one) if isinstance(one, Mapping) else str(one) for one in value)]
        else:
            words += [option, json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return words
