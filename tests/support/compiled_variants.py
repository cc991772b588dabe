"""Which variants of Triton's kernels an engine launches: what a GPU would compile, read off launches in the interpreter."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime.interpreter import InterpretedFunction

Variant = tuple[str, tuple[Any, ...]]
"""A kernel's name with its module, and what its code depends on of each argument."""


@contextmanager
def launched_variants() -> Iterator[set[Variant]]:
    """The variants launched inside, as Triton tells them apart when it compiles for a GPU."""
    found: set[Variant] = set()
    run = InterpretedFunction.run

    def noting(self: Any, *args: Any, grid: Any, warmup: Any, **kwargs: Any) -> Any:
        found.add((f"{self.fn.__module__}.{self.fn.__name__}", _specialised(self, args, kwargs)))
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = noting
    try:
        yield found
    finally:
        InterpretedFunction.run = run


def _specialised(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """Constants by their value, pointers by dtype and alignment, numbers by what Triton specialises them for."""
    signature = inspect.signature(kernel.fn)
    own = {name: value for name, value in options.items() if name in signature.parameters}
    bound = signature.bind(*args, **own)
    bound.apply_defaults()
    fixed = set(kernel.kwargs.get("do_not_specialize") or ())
    parts: list[Any] = [tuple(sorted((name, value) for name, value in options.items() if name not in own))]
    for index, (name, value) in enumerate(bound.arguments.items()):
        is_constant = "constexpr" in str(signature.parameters[name].annotation)
        if is_constant or value is None or isinstance(value, bool | str):
            parts.append(value)
        elif hasattr(value, "data_ptr"):
            parts.append((str(value.dtype), value.data_ptr() % 16 == 0))
        elif isinstance(value, int):
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            free = name in fixed or index in fixed
            parts.append((kind, None if free else 1 if value == 1 else value % 16 == 0))
        else:
            parts.append(type(value).__name__)
    return tuple(parts)
