"""What a patch of vLLM is, and the list of all of them.

In an engine that was not asked for optimal sampling each patch calls vLLM's own code and nothing more.
`tests/engine/test_contract.py` holds every one of them against the installed vLLM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_optimal_sampling.config.versions import SUPPORTED_VLLM

Releases = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Patch:
    """One attribute of vLLM and what replaces it.

    Attributes:
        module: where vLLM defines (or looks up) the attribute.
        name: the attribute, `Class.method`, `function` or `Class`.
        parameters: the names the original takes, as the contract test expects them, "..." where releases differ; None
            for a property.
        reason: why no public hook of vLLM does it.
        wrap: makes the replacement of the original.
        releases: the first vLLM that it fits, and the first that it no longer does.
        upstream: the issue or pull request of vLLM that would make it unnecessary, where there is one.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None
    reason: str
    wrap: Callable[[Any], Any]
    releases: Releases = SUPPORTED_VLLM
    upstream: str | None = None


PATCHES: list[Patch] = []
"""All patches, in the order of their registration."""


def register(
    modules: str | tuple[str, ...], name: str, parameters: str | None, reason: str, **details: Any
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Register a function that makes the replacement of `name`, see `Patch`.

    Args:
        modules: the module, or several that look the attribute up under their own name.
        name: see `Patch`.
        parameters: separated by blanks.
        reason: see `Patch`.
        details: further fields of `Patch`.
    """

    def add(wrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
        for module in (modules,) if isinstance(modules, str) else modules:
            names = None if parameters is None else tuple(parameters.split())
            PATCHES.append(Patch(module, name, names, reason, wrap, **details))
        return wrap

    return add


def patch(
    modules: str | tuple[str, ...], name: str, parameters: str, reason: str, **details: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a replacement that gets the original as its first argument, and the original's arguments after it."""

    def add(replacement: Callable[..., Any]) -> Callable[..., Any]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def patched(*args: Any, **kwargs: Any) -> Any:
                return replacement(original, *args, **kwargs)

            return patched

        register(modules, name, parameters, reason, **details)(wrap)
        return replacement

    return add
