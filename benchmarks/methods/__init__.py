"""The ways of sampling that are compared, each behind `base.Method` and in a process of its own (`process`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from methods.base import Counters, Method, Settings

__all__ = ["METHODS", "Counters", "Method", "Settings", "find"]

# Where each is; imported in its own process only, since vLLM and torch are heavy.
METHODS = {
    "teacher": "methods.engines:Teacher",
    "theta": "methods.engines:Theta",
    "draft_model": "methods.engines:DraftModel",
    "optimal": "methods.engines:Optimal",
    "original": "methods.reference_implementation:ReferenceImplementation",  # its name in the recorded results
    "lockstep": "methods.lockstep:Lockstep",
    "self_teacher": "methods.scoring:Alone",
    "self": "methods.scoring:OneForward",
    "self_apart": "methods.scoring:TwoForwards",
    "scored": "methods.scoring:Scored",
}


def find(name: str) -> Any:
    """The class of a method."""
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}; known are {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)
