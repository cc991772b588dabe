"""Shortcuts through Triton's interpreter that leave every result the same, bit for bit. `take()` installs them.

On a CPU nearly all of vLLM's time goes into the interpreter's bookkeeping, not into arithmetic. 320 tokens of two toy
models with three drafts took 14.7 s of processor time, and with the first three shortcuts added in turn 11.3, 8.0 and
6.9 s. The later ones (calls, types of operands) took 512 tokens of the example pair with six drafts from 6.2 to 5.1 s.
"""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

from vllm_optimal_sampling.interpreter import is_interpreting

# The bodies replaced below were read in these releases; another one runs as Triton wrote it, only slower.
TRITON_RELEASES = ("3.7.", "3.9.")

MOST_CONSTANTS = 4096
"""How many numbers are kept as Triton's tensors: what a kernel is called with may be another number each time."""


class _Untouched:
    """What a launch holds in place of Triton's record of patches: there is nothing to restore."""

    def restore(self) -> None:
        """Leave `triton.language` as it is."""


def take() -> bool:
    """Install the shortcuts in this process; do nothing unless Triton interprets.

    Returns:
        Whether they are installed: false where nothing is interpreted or Triton's release is not known.
    """
    if not is_interpreting():
        return False
    import triton  # heavy, and needed only here
    import triton.language as tl
    from triton.runtime import interpreter

    from vllm_optimal_sampling.interpreter import blocks, launching, operators

    if not triton.__version__.startswith(TRITON_RELEASES):
        return False
    if getattr(interpreter._patch_lang, "is_shortcut", False):
        return True

    # A function of triton.language is called through two layers, which look for an argument that is the same each time.
    def patch_attr(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        # Below the check of that argument, which the interpreter always gives.
        function = getattr(member, "__wrapped__", member)
        semantic = interpreter.interpreter_semantic

        def call(*args: Any, **named: Any) -> Any:
            named["_semantic"] = semantic
            return function(*args, **named)

        scope.set_attr(obj, name, call)

    interpreter._patch_attr = patch_attr

    # Every launch, and every call of a device function in it, replaces some 300 functions of triton.language by ones
    # that interpret. Nothing in this process compiles, so they may stay replaced.
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    untouched = _Untouched()

    def patch_lang(fn: Any) -> _Untouched:
        return untouched

    patch_lang.is_shortcut = True  # type: ignore[attr-defined]
    interpreter._patch_lang = patch_lang

    # Integer arithmetic is done again in 64 bits for an assertion on overflow, which is dropped unless debugging.
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

    # Each value carries its shape as objects: share those of equal shapes, which nothing changes.
    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle = handle
        self.type = type
        self.dtype = type.scalar
        shape = tuple(type.shape.values) if type.is_block() else ()
        if shape not in shapes:
            shapes[shape] = tl.constexpr(math.prod(shape)), tl.tuple([tl.constexpr(size) for size in shape])
        self.numel, self.shape = shapes[shape]

    tl.tensor.__init__ = tensor

    # The table from Triton's types to numpy's is built anew at every look into it: 7 % of a step. By name, once.
    get_np_dtype = interpreter._get_np_dtype
    numpy_types: dict[str, Any] = {}

    def np_dtype(tt_dtype: Any) -> Any:
        name = tt_dtype.scalar.name
        found = numpy_types.get(name)
        if found is None:
            found = numpy_types[name] = get_np_dtype(tt_dtype)
        return found

    interpreter._get_np_dtype = np_dtype

    # Types of blocks are made anew for each result: by type of the elements and shape, once. Of two operands with one type
    # and one shape nothing has to be found out.
    block_type, semantics = tl.core.block_type, type(interpreter.interpreter_semantic)
    block_types: dict[tuple[str, tuple[int, ...]], Any] = {}

    def block_of(scalar_ty: Any, shape: Any) -> Any:
        if type(scalar_ty) is not tl.dtype:  # the name of a pointer's type leaves out its address space
            return block_type(scalar_ty, shape)
        key = scalar_ty.name, tuple(shape)
        found = block_types.get(key)
        if found is None:
            found = block_types[key] = block_type(scalar_ty, shape)
        return found

    block_type.with_element_ty = lambda self, scalar_ty: block_of(scalar_ty, self.shape.values)

    broadcast_value = semantics.broadcast_impl_value

    def beside(block_ty: Any, number: Any) -> Any:
        shape, handle = block_ty.shape.values, number.handle
        data = blocks.repeated(handle.data, shape)
        return tl.tensor(interpreter.TensorHandle(data, handle.dtype.scalar), block_of(number.type.scalar, shape))

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        lhs_ty, rhs_ty = lhs.type, rhs.type
        if lhs_ty is rhs_ty:
            return lhs, rhs
        lhs_is_block = lhs_ty.is_block()
        if lhs_is_block != rhs_ty.is_block():
            if lhs_is_block:
                return lhs, beside(lhs_ty, rhs)
            return beside(rhs_ty, lhs), rhs
        if not lhs_is_block:
            return lhs, rhs
        left, right = lhs_ty.shape.values, rhs_ty.shape.values
        if left == right:
            return lhs, rhs
        if len(left) != len(right) or any(a != b and 1 not in (a, b) for a, b in zip(left, right, strict=True)):
            return broadcast_value(self, lhs, rhs)  # which also says what is wrong
        shape = [max(sizes) for sizes in zip(left, right, strict=True)]
        if left != shape:
            lhs = tl.tensor(self.builder.create_broadcast(lhs.handle, shape), block_of(lhs_ty.scalar, shape))
        if right != shape:
            rhs = tl.tensor(self.builder.create_broadcast(rhs.handle, shape), block_of(rhs_ty.scalar, shape))
        return lhs, rhs

    semantics.broadcast_impl_value = broadcast_impl_value

    # Of a number beside a float the type is known, and the number is made a tensor anew each time.
    constants: dict[tuple[float, float, str], Any] = {}

    def constant(self: Any, value: Any, dtype: Any) -> Any:
        if type(value) is tl.constexpr:
            value = value.value
        is_number = type(value) in (int, float) and value == value
        if not is_number or type(dtype) is not tl.dtype or dtype not in floats:
            return None
        key = value, math.copysign(1.0, value), dtype.name  # 0.0 == -0.0
        found = constants.get(key)
        if found is None:
            if len(constants) >= MOST_CONSTANTS:
                constants.clear()
            found = constants[key] = self.scalar_constant(value, dtype)
        return found

    check_types = semantics.binary_op_type_checking_impl
    kept_types = {tl.float32, tl.float64, tl.int32, tl.int64, tl.uint32, tl.uint64}
    floats = {tl.float32, tl.float64}

    def binary_op_type_checking_impl(
        self: Any,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> Any:
        # The class has to be that of the interpreter's tensors: numbers have no `dtype`, and constants are no tensors.
        alike = type(lhs) is tl.tensor and type(rhs) is tl.tensor and lhs.dtype is rhs.dtype
        if alike and lhs.dtype in (floats if div_or_mod else kept_types):
            return broadcast_impl_value(self, lhs, rhs)
        if type(lhs) is tl.tensor:
            number = constant(self, rhs, lhs.dtype)
            if number is not None:
                return broadcast_impl_value(self, lhs, number)
        elif type(rhs) is tl.tensor:
            number = constant(self, lhs, rhs.dtype)
            if number is not None:
                return broadcast_impl_value(self, number, rhs)
        return check_types(self, lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    semantics.binary_op_type_checking_impl = binary_op_type_checking_impl
    blocks.take(type(builder))
    if not builder.options.debug:  # else an overflow is looked for in each operation
        launching.take()
        operators.take(interpreter.interpreter_semantic)
    return True
