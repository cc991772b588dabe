"""Puts the patches in: at once in modules that are loaded, else when vLLM first imports them.

A process pays only for what it uses, and no module is imported before its time.
"""

from __future__ import annotations

import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from vllm_optimal_sampling.config.versions import is_supported_version
from vllm_optimal_sampling.hooks import engine_core, front_end, server, worker
from vllm_optimal_sampling.hooks.registry import PATCHES

PROCESSES = (front_end, server, engine_core, worker)
"""The files of patches. Importing them registers what they have."""


def install() -> None:
    """Put in every patch.

    An unsupported vLLM is left as it is, but for the refusal of an engine that asks for optimal sampling.
    """
    modules = {patch.module for patch in PATCHES}
    if not is_supported_version():
        modules = {"vllm.engine.arg_utils"}
    loaded = {module for module in modules if _is_loaded(module)}
    for module in loaded:
        _apply(sys.modules[module])
    sys.meta_path.insert(0, _PatchingFinder(modules - loaded))


def _is_loaded(module: str) -> bool:
    return module in sys.modules and not getattr(sys.modules[module].__spec__, "_initializing", False)


def _apply(module: ModuleType) -> None:
    for patch in PATCHES:
        if patch.module != module.__name__:
            continue
        *path, attribute = patch.name.split(".")
        owner: Any = module
        for name in path:
            owner = getattr(owner, name)
        original = vars(owner)[attribute]
        # A module that imports a function after it was patched has the replacement already. Properties have no `__dict__`.
        if "is_patched" in getattr(original, "__dict__", {}):
            continue
        replacement = patch.wrap(original)
        if not isinstance(replacement, property):
            replacement.is_patched = True
        setattr(owner, attribute, replacement)


class _PatchingLoader(importlib.abc.Loader):
    """Runs vLLM's own loader, then the patches of the module."""

    def __init__(self, loader: importlib.abc.Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _apply(module)

    def __getattr__(self, name: str) -> Any:  # get_source and the like, for tracebacks and inspect
        return getattr(self.loader, name)


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds the modules that have patches, as the other finders do, and has them patched once they are loaded."""

    def __init__(self, modules: set[str]):
        self.modules = modules

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.modules:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec
