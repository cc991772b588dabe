"""What the kernels of a mix hand on to one another: the numbers of the methods, and what is where in the scratch."""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def, assignment"

# ruff: noqa: RUF005 - Triton adds tuples, but does not unpack one into another.

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import scratch
from .settings import NEVER, Method, Search

OPTED_OUT = tl.constexpr(NEVER)
KL_SYMMETRY = tl.constexpr(int(Method.KL_SYMMETRY))
FIXED = tl.constexpr(int(Method.FIXED))
ENTROPY = tl.constexpr(int(Method.ENTROPY))
ESS_BALANCE = tl.constexpr(int(Method.ESS_BALANCE))
REVERSE_KL_SYMMETRY = tl.constexpr(int(Method.REVERSE_KL_SYMMETRY))
ARITHMETIC = tl.constexpr(int(Method.ARITHMETIC))
KL_BUDGET = tl.constexpr(int(Method.KL_BUDGET))
JS_GATE = tl.constexpr(int(Method.JS_GATE))
SEARCH_TOP_K = tl.constexpr(int(Search.TOP_K))
SEARCH_TOP_P = tl.constexpr(int(Search.TOP_P))
SEARCH_ESS_BALANCE = tl.constexpr(int(Search.ESS_BALANCE))

# Partial sums: one row and split each, [PARTIAL_WIDTH] fp32. A reading (`tilt.Reading`), and the divergences
# (`divergences.Divergences`). The last three begin one column a node.
PARTIAL_WIDTH = tl.constexpr(scratch.PARTIAL_WIDTH)
PARTIAL_PEAK_LOW = tl.constexpr(0)
PARTIAL_PEAK_HIGH = tl.constexpr(1)
PARTIAL_OWN = tl.constexpr(2)
PARTIAL_SPREAD_LOW = tl.constexpr(3)
PARTIAL_SPREAD_HIGH = tl.constexpr(4)
PARTIAL_JS = tl.constexpr(5)
PARTIAL_KL_THETA = tl.constexpr(6)
PARTIAL_KL_TEACHER = tl.constexpr(7)
PARTIAL_PEAK_OWN = tl.constexpr(8)
PARTIAL_Z = tl.constexpr(16)
PARTIAL_R = tl.constexpr(32)
PARTIAL_Q = tl.constexpr(48)

PLAN_WIDTH = tl.constexpr(scratch.PLAN_WIDTH)
SOLUTION_WIDTH = tl.constexpr(scratch.SOLUTION_WIDTH)


class Plan(NamedTuple):
    """What a row asks for; all [ROWS]. In the scratch the column of a field is its place here."""

    mixed: Any
    """1, or 0 where the teacher draws alone and the row is only measured."""
    method: Any
    """One of the numbers above."""
    floor: Any
    """The teacher's logit below which a token is not mixed."""
    alpha_min: Any
    """Bounds of alpha; equal where it is known."""
    alpha_max: Any
    max_js: Any
    """Nats: above it the teacher draws alone."""
    restricted: Any
    """1 where the support is."""
    teacher_lse: Any
    """Log-sum-exp of the whole rows, where the support is restricted."""
    theta_lse: Any
    budget: Any
    """Nats, of `KL_BUDGET`."""


PLAN_FIELDS = tl.constexpr(len(Plan._fields))


@triton.jit
def store_fields(out, values, active, COUNT: tl.constexpr):
    """The fields of a named tuple, each in the column of its place, as fp32."""
    for column in tl.static_range(COUNT):
        tl.store(out + column, values[column].to(tl.float32), mask=active)


@triton.jit
def load_fields(out, active, COUNT: tl.constexpr):
    """What `store_fields` stored; 1 for rows that are not `active`. What is not used is not loaded."""
    values = ()
    for column in tl.static_range(COUNT):
        values = values + (tl.load(out + column, mask=active, other=1.0),)
    return values


@triton.jit
def load_plan(plan_ptr, row, active):
    return Plan(*load_fields(plan_ptr + row * PLAN_WIDTH, active, PLAN_FIELDS))
