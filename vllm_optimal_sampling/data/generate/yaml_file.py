"""Options from a YAML file."""

from __future__ import annotations

from typing import Any

import yaml

from vllm_optimal_sampling.data.generate.errors import SettingsError


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML takes the last of several values of one key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> dict[str, Any]:
    """The keys of a YAML file, with `_` for `-`, and their values.

    Raises:
        SettingsError: the file cannot be read, is not a mapping of names to values, or has a key twice.

    """
    try:
        with open(path, encoding="utf-8") as file:
            given = yaml.load(file, _UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"config={path!r} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise SettingsError(f"config={path!r} is not a mapping of options to values")
    options: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in options:
            raise SettingsError(f"config={path!r} has {name.replace('_', '-')} twice, once as {name}; give it once")
        options[name] = value
    return options
