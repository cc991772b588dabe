"""The ways to find alpha, the weight of the teacher: the one list of them. Imports neither torch nor vLLM."""

import enum


class Method(enum.IntEnum):
    """How alpha is found for a row. The number is what the kernels read, the name in lower case what a request says."""

    KL_SYMMETRY = 0
    """D_KL(q || theta) = D_KL(q || teacher)."""
    FIXED = 1
    """alpha as given."""
    ENTROPY = 2
    """alpha = H(theta) / (H(theta) + H(teacher))."""
    ESS_BALANCE = 3
    """sum theta^2 / q = sum teacher^2 / q: draws of q, reweighted to either model, are worth as many draws of it."""
    REVERSE_KL_SYMMETRY = 4
    """D_KL(theta || q) = D_KL(teacher || q)."""
    ARITHMETIC = 5
    """alpha as given, and q = alpha * teacher + (1 - alpha) * theta instead of the geometric mixture."""
    KL_BUDGET = 6
    """The largest alpha with D_KL(q || theta) <= kl_budget: what is closest to the teacher within so many nats of theta,
    as in Trust-Region Behavior Blending (TRB, arXiv 2605.31159)."""
    JS_GATE = 7
    """alpha = alpha_max - (alpha_max - alpha_min) * tanh(js_sensitivity * d / 2) with d the Jensen-Shannon divergence of the
    two models in nats, as in DemoPSD (arXiv 2607.02502, equations 7 to 9), whose alpha_max is 1, alpha_min 0.85 and
    js_sensitivity 50."""


ALPHA_METHODS = tuple(method.name.lower() for method in Method)
"""What `alpha_method` may be. `arithmetic` mixes probabilities, the others are geometric."""
