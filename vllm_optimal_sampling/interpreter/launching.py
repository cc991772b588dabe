"""A shortcut through launches: what does not change from one launch of a kernel to the next is found out once.

For each launch Triton asks Python for the signature of the kernel, copies every tensor's storage to the host and back, though
it is there, and spells each argument's type to parse it again: a ninth of the interpreter's time in small engines. Every
result stays the same, bit for bit.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

TENSORS = {torch.Tensor, torch.nn.Parameter}
PLAIN = {int, float, bool, type(None), str, tl.constexpr, tl.dtype}
INT32 = range(-(2**31), 2**31)


class Signature(NamedTuple):
    """What a kernel takes."""

    function: Callable[..., None]
    names: list[str]
    defaults: dict[str, Any]
    constants: frozenset[str]
    """Names of the arguments that are given to it as they are."""

    @classmethod
    def of(cls, kernel: Any) -> "Signature":
        function = kernel.rewrite()
        parameters = inspect.signature(function).parameters
        defaults = {name: one.default for name, one in parameters.items() if one.default is not one.empty}
        executor = interpreter.GridExecutor(function, kernel.arg_names, None)
        return cls(function, list(parameters), defaults, frozenset(executor.constexprs))

    def bind(self, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any] | None:
        """All arguments by name; None where Triton has to say what is wrong with them."""
        bound = dict(zip(self.names, args, strict=False))
        given = {name: value for name, value in named.items() if name in self.names}  # and not `num_warps`
        if len(args) > len(self.names) or not bound.keys().isdisjoint(given):
            return None
        bound = {**self.defaults, **bound, **given}
        return bound if len(bound) == len(self.names) else None


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in PLAIN or (kind in TENSORS and value.device.type == "cpu")


class Conversions:
    """Arguments as a kernel sees them: tensors of one number each, an address or the number itself."""

    def __init__(self) -> None:
        self.types: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if kind in TENSORS:
            key, data = value.dtype, np.array([value.data_ptr()], np.uint64)
        elif kind is int and value in INT32:
            key, data = int, np.array([value], np.int32)
        else:
            return interpreter._implicit_cvt(value)
        found = self.types.get(key)
        if found is None:
            found = self.types[key] = interpreter._implicit_cvt(value).type
        return tl.tensor(interpreter.TensorHandle(data, found), found)


def take() -> None:
    """Install the shortcut; numpy's warnings are left out of every launch, since masked lanes hold anything."""
    whole = interpreter.InterpretedFunction.run
    builder = interpreter.interpreter_builder
    signatures: dict[Any, Signature] = {}
    convert = Conversions()

    def launch(kernel: Any, grid: Any, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        signature = signatures.get(kernel.fn)
        if signature is None:
            signature = signatures[kernel.fn] = Signature.of(kernel)
        bound = signature.bind(args, named)
        if bound is None or kernel.pre_run_hooks or not all(map(_is_plain, bound.values())):
            return False
        bound = {name: value if name in signature.constants else convert(value) for name, value in bound.items()}
        sizes = tuple(grid(bound) if callable(grid) else grid)
        sizes += (1,) * (3 - len(sizes))
        builder.set_grid_dim(*sizes)
        try:
            for x in range(sizes[0]):
                for y in range(sizes[1]):
                    for z in range(sizes[2]):
                        builder.set_grid_idx(x, y, z)
                        signature.function(**bound)
        except Exception as error:
            if triton.knobs.compilation.front_end_debugging:
                raise
            raise interpreter.InterpreterError(repr(error)) from error
        return True

    @wraps(whole)
    def run(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        with np.errstate(all="ignore"):
            if warmup or not launch(self, grid, args, named):
                return whole(self, *args, grid=grid, warmup=warmup, **named)
        return None

    interpreter.InterpretedFunction.run = run
