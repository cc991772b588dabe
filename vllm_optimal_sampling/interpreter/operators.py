"""Shortcuts through operators on tensors: which types they compute in is found out once for each pair. `take()` installs them.

Triton goes through a dozen Python functions for each `a + b`: it unwraps, promotes, casts and broadcasts, and checks what came
out. All of it follows from the types of the operands, or from a type and a number. Here the first such operation goes that
way and leaves a plan; the next ones go straight to numpy's function, which broadcasts by itself. 2,112 tokens of two toy models
with three drafts took 39 s of processor time, and take 23. Every result stays the same, bit for bit.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import numpy as np
import triton.language as tl
from triton._C.libtriton.interpreter import load as raw_load
from triton.runtime import interpreter

from vllm_optimal_sampling.interpreter import blocks

MOST_PLANS = 4096
"""For each operator: what a kernel is called with may be another number each time."""

Tensor, TensorHandle = tl.tensor, interpreter.TensorHandle
NUMBERS = {int, float, bool}
MISSING = object()

NUMPY_TYPES = {
    "int1": np.dtype(np.bool_),
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "fp32": np.dtype(np.float32),
    "fp64": np.dtype(np.float64),
}
"""The types that numpy converts and computes as Triton does. Arithmetic of int1 is another one."""

ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
COMPARISONS = {
    "less_than": np.less,
    "less_equal": np.less_equal,
    "greater_than": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
}
BITWISE = {"and_": np.bitwise_and, "or_": np.bitwise_or, "xor_": np.bitwise_xor}
SHIFTS = {"shl": np.left_shift, "lshr": np.right_shift, "ashr": np.right_shift}

METHODS = {
    "__add__": "add",
    "__sub__": "sub",
    "__mul__": "mul",
    "__truediv__": "truediv",
    "__lt__": "less_than",
    "__le__": "less_equal",
    "__gt__": "greater_than",
    "__ge__": "greater_equal",
    "__eq__": "equal",
    "__ne__": "not_equal",
    "__and__": "and_",
    "__or__": "or_",
    "__xor__": "xor_",
    "__lshift__": "shl",
    "__rshift__": "lshr",  # `ashr` where the left operand is signed, and numpy's function likewise
}
REFLECTED = {"__radd__": "add", "__rsub__": "sub", "__rmul__": "mul", "__rtruediv__": "truediv"}
REFLECTED |= {"__rand__": "and_", "__ror__": "or_", "__rxor__": "xor_"}


class Plan(NamedTuple):
    """What an operator does with operands of two types."""

    left: np.dtype | None
    """What the left operand is converted to, if it is."""
    right: np.dtype | None
    number: np.ndarray | None
    """In place of the operand that is a number, `[1]`."""
    result: np.dtype | None
    """What numpy's result is converted to, if it is."""
    dtype: Any
    """Triton's, of the result's data."""
    fields: dict[str, Any]
    """Of the result, a tensor: all but its data."""


def fields_of(value: Any) -> dict[str, Any]:
    """What tensors of one type have in common."""
    return {name: field for name, field in vars(value).items() if name != "handle"}


def make_tensor(data: np.ndarray, dtype: Any, fields: dict[str, Any]) -> Any:
    """A tensor whose data are known to fit its type."""
    handle = object.__new__(TensorHandle)
    handle.__dict__ = {"data": data, "dtype": dtype, "attr": {}}
    result = object.__new__(Tensor)
    result.__dict__ = {"handle": handle, **fields}
    return result


class Operator:
    """One of the operators that take two operands.

    Args:
        function: numpy's, which computes it.
        check: the method of Triton's semantics that finds the common type of the operands.
        types: in which numpy's function computes it, by Triton's names.
        keeps_left: whether it is numpy's function only where the left operand's type is the common one.
    """

    def __init__(self, function: Any, check: Callable[..., Any], types: set[str], keeps_left: bool = False) -> None:
        self.function, self.check, self.types, self.keeps_left = function, check, types, keeps_left
        self.plans: dict[Any, Plan | None] = {}

    def __call__(self, whole: Callable[..., Any], left: Any, right: Any, *rest: Any) -> Any:
        """The result, by a plan if there is one; else by Triton's `whole` operator, which gets the rest too."""
        first = second = None
        key: Any = None
        if type(left) is Tensor:
            first = left.handle.data
            if type(right) is Tensor:
                second = right.handle.data
                key = left.type.name, first.dtype.num, right.type.name, second.dtype.num
            elif type(right) in NUMBERS:
                key = left.type.name, first.dtype.num, right or repr(right), type(right)  # 0.0 == -0.0
        elif type(left) in NUMBERS:
            second = right.handle.data
            key = left or repr(left), type(left), right.type.name, second.dtype.num
        if key is None:
            return whole(left, right, *rest)
        plan: Any = self.plans.get(key, MISSING)
        if plan is None:
            return whole(left, right, *rest)
        if plan is MISSING:
            result = whole(left, right, *rest)
            if len(self.plans) >= MOST_PLANS:
                self.plans.clear()
            self.plans[key] = self._plan(left, right, result)
            return result
        if first is None:
            first = plan.number
        elif plan.left is not None:
            first = first.astype(plan.left)
        if second is None:
            second = plan.number
        elif plan.right is not None:
            second = second.astype(plan.right)
        data = self.function(first, second)
        if plan.result is not None:
            data = data.astype(plan.result)
        return make_tensor(data, plan.dtype, plan.fields)

    def _plan(self, left: Any, right: Any, result: Any) -> Plan | None:
        operands = [value for value in (left, right) if type(value) is Tensor]
        ranks = {len(value.type.shape) for value in operands if value.type.is_block()}
        if any(value.dtype.name not in NUMPY_TYPES for value in operands) or len(ranks) > 1:
            return None
        checked = self.check(left, right)
        common = checked[0].dtype
        if checked[1].dtype != common or common.name not in self.types:
            return None
        if self.keeps_left and (type(left) is not Tensor or left.dtype != common):
            return None
        wanted = NUMPY_TYPES[common.name]
        numbers = [
            found.handle.data for given, found in zip((left, right), checked, strict=True) if type(given) is not Tensor
        ]

        def conversion(value: Any) -> np.dtype | None:
            return None if type(value) is not Tensor or value.handle.data.dtype == wanted else wanted

        computed = self.function(np.ones(1, wanted), np.ones(1, wanted)).dtype
        found = result.handle.data.dtype
        return Plan(
            conversion(left),
            conversion(right),
            numbers[0].reshape(-1)[:1].copy() if numbers else None,
            None if computed == found else found,
            result.handle.dtype,
            fields_of(result),
        )


class Additions:
    """Offsets added to pointers.

    Args:
        builder: Triton's, which adds them.
    """

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.plans: dict[Any, dict[str, Any] | None] = {}

    def __call__(self, whole: Callable[..., Any], pointer: Any, offset: Any) -> Any:
        """The pointers further on; by Triton's `whole` addition where there is no plan."""
        key = pointer.type.name, offset.type.name
        fields: Any = self.plans.get(key, MISSING)
        if fields is None:
            return whole(pointer, offset)
        if fields is MISSING:
            result = whole(pointer, offset)
            self.plans[key] = self._plan(pointer, offset, result)
            return result
        start, steps, width = pointer.handle, offset.handle, offset.dtype
        if fields["type"].is_block():
            shape = fields["type"].shape
            start, steps = (
                handle if handle.data.size > 1 else TensorHandle(blocks.repeated(handle.data, shape), handle.dtype)
                for handle in (start, steps)
            )
        if width.is_int_unsigned() and width.int_bitwidth < 64:  # an offset of as many bits may be negative
            steps = self.builder.cast_impl(steps, tl.int64)
        result = object.__new__(Tensor)
        result.__dict__ = {"handle": self.builder.create_addptr(start, steps), **fields}
        return result

    def _plan(self, pointer: Any, offset: Any, result: Any) -> dict[str, Any] | None:
        shapes = {tuple(value.type.shape) for value in (pointer, offset) if value.type.is_block()}
        is_plain = type(offset.dtype) is tl.dtype and offset.dtype.name in NUMPY_TYPES and len(shapes) < 2
        return fields_of(result) if is_plain else None


def _take_casts(semantics: Any) -> None:
    """Install the shortcut through conversions between the types that numpy converts as Triton does."""
    whole = semantics.cast
    plans: dict[Any, Any] = {}

    @wraps(whole)
    def cast(self: Any, input: Any, dst_ty: Any, fp_downcast_rounding: Any = None) -> Any:
        target = dst_ty.scalar
        if type(input) is not Tensor or fp_downcast_rounding is not None:
            return whole(self, input, dst_ty, fp_downcast_rounding)
        if input.dtype is target:
            return input
        data = input.handle.data
        key = input.type.name, data.dtype.num, target.name
        plan = plans.get(key)
        if plan is None or (data.size >= blocks.LEAST and 0 in data.strides):
            result = whole(self, input, dst_ty)
            names = input.dtype.name, target.name
            if plan is None and target.name != "int1" and all(name in NUMPY_TYPES for name in names):
                plans[key] = result.handle.data.dtype, result.handle.dtype, fields_of(result)
            return result
        converted, dtype, fields = plan
        return make_tensor(data.astype(converted), dtype, fields)

    def to(self: Any, dtype: Any, fp_downcast_rounding: Any = None, bitcast: bool = False, **named: Any) -> Any:
        if type(dtype) is tl.dtype and fp_downcast_rounding is None and bitcast is False:
            return interpreter.interpreter_semantic.cast(self, dtype)
        return whole_to(self, dtype, fp_downcast_rounding, bitcast, **named)

    whole_to = Tensor.to
    semantics.cast, Tensor.to = cast, to


def _take_loads() -> None:
    """Install the shortcut through loads of one number."""
    whole = tl.load
    kept = np.ones(1, np.bool_)
    plans: dict[Any, Any] = {}

    @wraps(whole)
    def load(pointer: Any, mask: Any = None, other: Any = None, *rest: Any, **named: Any) -> Any:
        dtype = pointer.dtype
        is_one = type(dtype) is tl.pointer_type and not (rest or named or pointer.type.is_block())
        if mask is None:
            is_one = is_one and other is None
        else:
            is_one = is_one and type(mask) is Tensor and not mask.type.is_block()
        if not is_one or not (other is None or type(other) in NUMBERS):
            return whole(pointer, mask, other, *rest, **named)
        key = dtype.element_ty.name, other or repr(other), type(other)
        plan = plans.get(key)
        kept_here = kept if mask is None else mask.handle.data
        if plan is None or kept_here.dtype != np.bool_ or kept_here.shape != (1,):
            result = whole(pointer, mask, other, *rest, **named)
            if plan is None and dtype.element_ty.name in NUMPY_TYPES.keys() - {"int1"} and len(plans) < MOST_PLANS:
                converted = NUMPY_TYPES[dtype.element_ty.name]
                semantic = interpreter.interpreter_semantic
                masked = semantic.cast(semantic.to_tensor(0 if other is None else other), dtype.element_ty)
                plans[key] = masked.handle.data.astype(converted), result.handle.dtype, fields_of(result)
            return result
        masked, found, fields = plan
        return make_tensor(raw_load(pointer.handle.data, kept_here, masked, masked.dtype), found, fields)

    for module in (tl, tl.core):
        module.load = load


def take(semantic: Any) -> None:
    """Install the shortcuts in Triton's tensors and in the class of `semantic`, which gives them their meaning."""
    numbers = set(NUMPY_TYPES) - {"int1"}
    integers = numbers - {"fp32", "fp64"}

    def check(left: Any, right: Any) -> Any:
        return semantic.binary_op_type_checking_impl(left, right)

    operators = {
        **{name: Operator(function, check, numbers) for name, function in (ARITHMETIC | COMPARISONS).items()},
        **{name: Operator(function, check, integers | {"int1"}) for name, function in BITWISE.items()},
        **{name: Operator(function, check, integers, keeps_left=True) for name, function in SHIFTS.items()},
        "truediv": Operator(np.divide, check, {"fp32", "fp64"}),
    }
    _take_casts(type(semantic))
    _take_loads()
    for name, operator in operators.items():
        _take_method(type(semantic), name, operator)
    for name, operation in METHODS.items():
        _take_operator(name, operators[operation], is_reflected=False)
    for name, operation in REFLECTED.items():
        _take_operator(name, operators[operation], is_reflected=True)
    _take_additions(Additions(semantic.builder))


def _take_method(semantics: type, name: str, operator: Operator) -> None:
    whole = getattr(semantics, name)

    def method(self: Any, left: Any, right: Any, *rest: Any, **named: Any) -> Any:
        return operator(partial(whole, self, **named), left, right, *rest)

    setattr(semantics, name, method)


def _take_operator(name: str, operator: Operator, is_reflected: bool) -> None:
    whole = getattr(Tensor, name)

    def as_given(left: Any, right: Any) -> Any:
        return whole(right, left) if is_reflected else whole(left, right)

    def called(self: Any, other: Any) -> Any:
        if type(other) is tl.constexpr:
            other = other.value
        return operator(as_given, other, self) if is_reflected else operator(as_given, self, other)

    setattr(Tensor, name, called)


def _take_additions(additions: Additions) -> None:
    number = Tensor.__add__
    offsets: dict[int, Any] = {}

    def offset_of(value: int) -> Any:
        found = offsets.get(value)
        if found is None:
            if len(offsets) >= MOST_PLANS:
                offsets.clear()
            found = offsets[value] = interpreter.interpreter_semantic.to_tensor(value)
        return found

    def add(self: Any, other: Any) -> Any:
        if type(self.dtype) is not tl.pointer_type:
            return number(self, other)
        if type(other) is tl.constexpr:
            other = other.value
        if type(other) is int:
            other = offset_of(other)
        return additions(number, self, other) if type(other) is Tensor else number(self, other)

    Tensor.__add__ = add
