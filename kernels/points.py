"""Sums at any alphas, each with a peak of its own, so that nothing underflows. Device functions of the searches."""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def, assignment"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tilt import LN_2, LOG2_E, NOTHING, RESOLVED, load_pair


class PointSums(NamedTuple):
    """L and its derivatives at some alphas; all [ROWS, POINTS], nats."""

    value: Any
    """L."""
    slope: Any
    """g, the mean of r."""
    curvature: Any
    """The variance of r."""


class Shift(NamedTuple):
    """What to take off r, so that g is that of the rows as they are."""

    total: Any
    """[ROWS] fp64: the difference of the normalisers and, where the models nearly agree, more than g: its rounding."""
    rounding: Any
    """[ROWS]: that rounding alone, L(1) - L(0) with the normalisers' difference taken off."""
    value_0: Any
    """[ROWS]: L(0), the rounding of theta's normaliser."""
    slope_0: Any
    """[ROWS]: g(0)."""


@triton.jit
def point_sums(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    alpha,  # [ROWS, POINTS]
    lse_theta,  # [ROWS]: over the mixed tokens
    shift,  # [ROWS] fp64: what is taken off r, the teacher's less theta's
    vocab,
    ROWS: tl.constexpr,
    POINTS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The `PointSums` at alpha.

    Tilts are added in float64: what is left of 300 - 300 has lost 3e-5 in float32, and g is of r's size times that.
    """
    lane = tl.arange(0, LANES)[None, :]
    peak = tl.full([ROWS, POINTS, LANES], NOTHING, tl.float32)
    z = tl.full([ROWS, POINTS, LANES], 0.0, tl.float32)
    r = z
    q = z
    for start in range(0, vocab, LANES):
        ids = start + lane
        teacher, theta, _, both = load_pair(
            teacher_row, theta_row, floor[:, None], active[:, None] & (ids < vocab), ids
        )
        exact_theta = tl.where(both, theta.to(tl.float64), 0.0)
        exact_ratio = tl.where(both, teacher.to(tl.float64) - exact_theta, 0.0)
        exact_theta = ((exact_theta - lse_theta.to(tl.float64)[:, None]) * LOG2_E)[:, None, :]
        exact_ratio -= shift[:, None]
        ratio = tl.where(both, exact_ratio.to(tl.float32), 0.0)[:, None, :]
        exact_bits = exact_theta + alpha.to(tl.float64)[:, :, None] * (exact_ratio * LOG2_E)[:, None, :]
        exact_bits = tl.where(both[:, None, :], exact_bits, float("-inf"))
        top = tl.maximum(peak, exact_bits.to(tl.float32))
        scale = tl.exp2(peak - top)
        weight = tl.exp2((exact_bits - top.to(tl.float64)).to(tl.float32))
        moment = weight * ratio
        z = z * scale + weight
        r = r * scale + moment
        q = q * scale + moment * ratio
        peak = top
    highest = tl.max(peak, axis=2)
    scale = tl.exp2(peak - highest[:, :, None])
    z *= scale
    z_sum = tl.maximum(tl.sum(z, axis=2), RESOLVED)
    slope = tl.sum(r * scale, axis=2) / z_sum
    curvature = tl.sum(q * scale, axis=2) / z_sum - slope * slope
    # L is near 0 where the models nearly agree, and log z and the peak are not.
    log_z = tl.log2(tl.maximum(tl.sum(z.to(tl.float64), axis=2), RESOLVED)) + highest.to(tl.float64)
    return PointSums(value=(log_z * LN_2).to(tl.float32), slope=slope, curvature=tl.maximum(curvature, 0.0))


@triton.jit
def shift_of(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    lse_theta,  # [ROWS]
    lse_teacher,  # [ROWS]
    vocab,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The `Shift` of the rows."""
    shift = lse_teacher.to(tl.float64) - lse_theta.to(tl.float64)
    end = tl.arange(0, 2)[None, :]
    ends = tl.full([ROWS], 0.0, tl.float32)[:, None] + end
    sums = point_sums(teacher_row, theta_row, floor, active, ends, lse_theta, shift, vocab, ROWS, 2, LANES)
    rounding = tl.sum(tl.where(end == 0, -sums.value, sums.value), axis=1)
    return Shift(
        total=shift + rounding.to(tl.float64),
        rounding=rounding,
        value_0=tl.sum(tl.where(end == 0, sums.value, 0.0), axis=1),
        slope_0=tl.sum(tl.where(end == 0, sums.slope, 0.0), axis=1),
    )


@triton.jit
def at_end(values, chosen, otherwise):
    """[ROWS]: the largest of the chosen of [ROWS, POINTS] values, which are all the same; `otherwise` if none is."""
    largest = tl.max(tl.where(chosen, values, float("-inf")), axis=1)
    return tl.where(tl.max(chosen.to(tl.int32), axis=1) > 0, largest, otherwise)


@triton.jit
def newton(a, b, off_a, off_b, rise_a, rise_b):
    """[ROWS]: where the better end's tangent meets 0, or the chord where that is outside the bracket."""
    from_a = -off_a <= off_b
    end = tl.where(from_a, a, b)
    off = tl.where(from_a, off_a, off_b)
    rise = tl.where(from_a, rise_a, rise_b)
    step_to = end - off / tl.where(rise > 0.0, rise, 1.0)
    good = (rise > 0.0) & (step_to > a) & (step_to < b)
    growth = off_b - off_a
    chord = a - off_a * ((b - a) / tl.where(growth > 0.0, growth, 1.0))
    return tl.where(good, step_to, chord)
