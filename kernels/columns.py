"""What the kernels of a mix hand on to one another: the numbers of the methods, and the columns of the scratch's tables."""

import triton.language as tl

from . import scratch
from .settings import NEVER, Method

OPTED_OUT = tl.constexpr(NEVER)
KL_SYMMETRY = tl.constexpr(int(Method.KL_SYMMETRY))
FIXED = tl.constexpr(int(Method.FIXED))
ENTROPY = tl.constexpr(int(Method.ENTROPY))
ESS_BALANCE = tl.constexpr(int(Method.ESS_BALANCE))
REVERSE_KL_SYMMETRY = tl.constexpr(int(Method.REVERSE_KL_SYMMETRY))
ARITHMETIC = tl.constexpr(int(Method.ARITHMETIC))
KL_BUDGET = tl.constexpr(int(Method.KL_BUDGET))
JS_GATE = tl.constexpr(int(Method.JS_GATE))

# The plan: one row of the batch each, [PLAN_WIDTH] fp32.
PLAN_WIDTH = tl.constexpr(scratch.PLAN_WIDTH)
PLAN_MIXED = tl.constexpr(0)
PLAN_METHOD = tl.constexpr(1)
PLAN_FLOOR = tl.constexpr(2)
PLAN_ALPHA_MIN = tl.constexpr(3)
PLAN_ALPHA_MAX = tl.constexpr(4)
PLAN_MAX_JS = tl.constexpr(5)
PLAN_RESTRICTED = tl.constexpr(6)
PLAN_TEACHER_LSE = tl.constexpr(7)
PLAN_THETA_LSE = tl.constexpr(8)
PLAN_BUDGET = tl.constexpr(9)

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

# The solution (`solution.Solution`): one row of the batch each, [SOLUTION_WIDTH] fp32.
SOLUTION_WIDTH = tl.constexpr(scratch.SOLUTION_WIDTH)
SOLUTION_DONE = tl.constexpr(0)
SOLUTION_LOW = tl.constexpr(1)
SOLUTION_HIGH = tl.constexpr(2)
SOLUTION_DELTA = tl.constexpr(3)
SOLUTION_VALUE = tl.constexpr(4)
SOLUTION_SLOPE = tl.constexpr(5)
SOLUTION_SOUND = tl.constexpr(6)
SOLUTION_ALPHA_MIN = tl.constexpr(7)
SOLUTION_ALPHA_MAX = tl.constexpr(8)
SOLUTION_LSE_THETA = tl.constexpr(9)
SOLUTION_LSE_TEACHER = tl.constexpr(10)
SOLUTION_OWN_LSE = tl.constexpr(11)
SOLUTION_KL_END = tl.constexpr(12)
SOLUTION_EXACT = tl.constexpr(13)
