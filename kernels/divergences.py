"""Divergences of two rows, by a reading of their own, and the alpha that depends on them. Device functions.

    JS(theta, teacher) = (D_KL(theta || m) + D_KL(teacher || m)) / 2,   m = (theta + teacher) / 2

With s = (teacher - theta) / (teacher + theta) for each token it is 1/2 sum m h(s),

    h(s) = (1 + s) log(1 + s) + (1 - s) log(1 - s) = sum over k >= 1 of s^(2 k) / (k (2 k - 1)),

whose terms are never negative: where the models nearly agree the series keeps the digits that the logarithms would lose.
"""

# What Triton compiles has no Python types.
# mypy: disable-error-code="no-untyped-def"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tilt import LN_2, LOG2_E, load_pair

NEAR = tl.constexpr(0.25)
"""Of s: the series is cut after s^10, and the next term is 1.4e-8 of the sum there."""
MOST_EXPONENT = tl.constexpr(80.0)


class Divergences(NamedTuple):
    """Of two rows, or of some of their tokens; all [ROWS], nats."""

    js: Any
    """JS(theta, teacher)."""
    kl_theta: Any
    """D_KL(q || theta) of the arithmetic mixture q."""
    kl_teacher: Any
    """D_KL(q || teacher) of the arithmetic mixture q."""


@triton.jit
def divergence_sums(
    teacher_row,  # [ROWS, 1] pointers
    theta_row,  # [ROWS, 1] pointers
    floor,  # [ROWS]
    active,  # [ROWS]
    arithmetic,  # [ROWS]
    alpha,  # [ROWS]
    lse_theta,  # [ROWS]
    lse_teacher,  # [ROWS]
    begin,
    end,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The `Divergences` of the tokens [begin, end)."""
    js = tl.full([ROWS, LANES], 0.0, tl.float32)
    kl_theta = js
    kl_teacher = js
    for start in range(begin, end, LANES):
        ids = start + tl.arange(0, LANES)[None, :]
        teacher, theta, own, both = load_pair(
            teacher_row, theta_row, floor[:, None], active[:, None] & (ids < end), ids
        )
        taken = both | (own & arithmetic[:, None])
        log_teacher = (teacher - lse_teacher[:, None]) * LOG2_E
        log_theta = tl.where(both, (theta - lse_theta[:, None]) * LOG2_E, float("-inf"))
        p_teacher = tl.where(taken, tl.exp2(log_teacher), 0.0)
        p_theta = tl.where(taken, tl.exp2(log_theta), 0.0)
        middle = 0.5 * (p_teacher + p_theta)
        log_middle = tl.log2(middle)
        js_teacher = tl.where(p_teacher > 0.0, p_teacher * (log_teacher - log_middle), 0.0)
        js_theta = tl.where(p_theta > 0.0, p_theta * (log_theta - log_middle), 0.0)
        s = 0.5 * (p_teacher - p_theta) / tl.where(middle > 0.0, middle, 1.0)
        s2 = s * s
        series = s2 * (1.0 + s2 * (1.0 / 6.0 + s2 * (1.0 / 15.0 + s2 * (1.0 / 28.0 + s2 / 45.0))))
        js += tl.where(tl.abs(s) < NEAR, middle * series * LOG2_E, js_teacher + js_theta)
        weight = alpha[:, None]
        mixture = weight * p_teacher + (1.0 - weight) * p_theta
        log_mixture = tl.log2(mixture)
        # theta's -inf under a positive mixture gives the inf that it should.
        kl_theta += tl.where(mixture > 0.0, mixture * (log_mixture - log_theta), 0.0)
        kl_teacher += tl.where(mixture > 0.0, mixture * (log_mixture - log_teacher), 0.0)
    return Divergences(
        js=tl.sum(js, axis=1) * (0.5 * LN_2),
        kl_theta=tl.sum(kl_theta, axis=1) * LN_2,
        kl_teacher=tl.sum(kl_teacher, axis=1) * LN_2,
    )


@triton.jit
def gated_alpha(js, sensitivity, alpha_min, alpha_max):
    """alpha_max - (alpha_max - alpha_min) tanh(sensitivity js / 2), all [ROWS]; alpha_max exactly where js is 0."""
    # Not 0 * inf.
    exponent = tl.where(js > 0.0, tl.minimum(sensitivity * js, MOST_EXPONENT), 0.0)
    share = 1.0 - 2.0 / (1.0 + tl.exp2(exponent * LOG2_E))
    return alpha_max - (alpha_max - alpha_min) * share
