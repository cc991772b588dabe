"""Rows of two models that disagree, by family, many at once; q* of each in float64; and the verdict on a kernel's rows.

Adversarial pairs of one kind each are in `adversarial_rows.py`. These are drawn in bulk, to be tried by the thousand.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import tolerances
import torch
from call import mix
from triton import next_power_of_2
from vllm_optimal_sampling.kernels import Method
from vllm_optimal_sampling.kernels.mix import INTERPRETED
from vllm_optimal_sampling.kernels.reference import LOWEST
from vllm_optimal_sampling.kernels.scratch import LaunchShape

Rows = tuple[torch.Tensor, torch.Tensor]
"""teacher, theta: logits `[rows, vocab]` float32."""

INF = float("inf")
SOLVING = (Method.KL_SYMMETRY, Method.REVERSE_KL_SYMMETRY, Method.ESS_BALANCE, Method.KL_BUDGET)


class Draw:
    """Families of rows, each a method of (rows, vocab). The same seed gives the same rows."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.generator)

    def number(self, low: float, high: float) -> float:
        return float(self.uniform(low, high, 1))

    def peak(self, rows: torch.Tensor, height: torch.Tensor | float, token: torch.Tensor | None = None) -> torch.Tensor:
        """Rows with one token each higher by `height`."""
        count, vocab = rows.shape
        token = self.integers(vocab, count) if token is None else token
        rows[torch.arange(count), token] += height
        return rows

    def sharp(self, rows: int, vocab: int, noise: float | None = None) -> Rows:
        """Shared logits of 3 nats, `noise` for each model, one peak of twice that for each. noise: 0.5 to 60."""
        noise = float(0.5 * 120 ** self.number(0, 1)) if noise is None else noise
        shared = 3 * self.normal(rows, vocab)
        teacher, theta = (self.peak(shared + noise * self.normal(rows, vocab), 2 * noise) for _ in range(2))
        return teacher, theta

    def adversarial(self, rows: int, vocab: int) -> Rows:
        """Ties at 0, jumps of 80, masks of -inf and -1e9, and numbers in between."""

        def row() -> torch.Tensor:
            kind = self.integers(10, rows, vocab)
            result = torch.where(kind < 3, self.uniform(-80, 80, rows, vocab), 3 * self.normal(rows, vocab))
            for place, value in enumerate((0.0, 80.0, -80.0, -1e9, -INF, 0.0), 3):
                result = torch.where(kind == place, value, result)
            return result

        return row(), row()

    def levels(self, rows: int, vocab: int) -> Rows:
        """A few heights, most of them ties; half of the teacher's rows a little off them."""
        heights = torch.tensor([-160.0, -80, -40, -20, -5, 0, 0, 1, 3, 20, 40, 80])
        off = 0.1 * self.normal(rows, vocab) * (self.uniform(0, 1, rows, 1) < 0.5)
        return heights[self.integers(12, rows, vocab)] + off, heights[self.integers(12, rows, vocab)]

    def one_hot(self, rows: int, vocab: int) -> Rows:
        """One peak of up to 80 nats for each model, on flat rows and on rough ones."""
        teacher, theta = (
            self.peak(self.normal(rows, vocab) * self.uniform(0, 3, rows, 1), self.uniform(0, 80, rows))
            for _ in range(2)
        )
        return teacher, theta

    def agreeing(self, rows: int, vocab: int) -> Rows:
        """Both models sure of one token, by up to 60 nats."""
        token = self.integers(vocab, rows)
        teacher, theta = (self.peak(3 * self.normal(rows, vocab), self.uniform(0, 60, rows), token) for _ in range(2))
        return teacher, theta

    def bf16(self, rows: int, vocab: int) -> Rows:
        teacher, theta = self.sharp(rows, vocab, self.number(0.5, 8))
        return teacher.bfloat16().float(), theta.bfloat16().float()

    def grammar(self, rows: int, vocab: int) -> Rows:
        """The teacher allows 1 to 11 tokens; theta has holes of its own in half of the calls."""
        teacher, theta = self.sharp(rows, vocab, self.number(0.5, 10))
        allowed = 1 + int(self.integers(min(vocab - 1, 11), 1))
        teacher = torch.where(self.uniform(0, 1, rows, vocab).argsort(-1) >= allowed, -INF, teacher)
        if self.number(0, 1) < 0.5:
            theta = torch.where(self.uniform(0, 1, rows, vocab) < 0.2, -INF, theta)
        return teacher, theta

    def disjoint(self, rows: int, vocab: int) -> Rows:
        """A share of the tokens that the teacher holds likelier by up to 160 nats, and the rest the other way round."""
        height = self.uniform(0, 80, rows, 1)
        side = torch.where(self.uniform(0, 1, rows, vocab) < self.uniform(0.1, 0.9, rows, 1), height, -height)
        return side + self.normal(rows, vocab), -side + self.normal(rows, vocab)

    def ordinary(self, rows: int, vocab: int) -> Rows:
        shared, noise = 2.5 * self.normal(rows, vocab), self.number(0.05, 3)
        return shared + noise * self.normal(rows, vocab), shared + noise * self.normal(rows, vocab)

    def near(self, rows: int, vocab: int) -> Rows:
        """Models that differ by 1e-4 to 1 nats."""
        shared, noise = 2.5 * self.normal(rows, vocab), 10 ** self.uniform(-4, 0, rows, 1)
        return shared + noise * self.normal(rows, vocab), shared + noise * self.normal(rows, vocab)

    def rare_token(self, rows: int, vocab: int) -> Rows:
        """Near-equal models, but for a few unlikely tokens on which they are up to 60 nats apart."""
        teacher, theta = self.near(rows, vocab)
        for _ in range(3):
            token = self.integers(vocab, rows)
            height = self.uniform(-30, 0, rows)
            gap = self.uniform(-30, 30, rows)
            teacher[torch.arange(rows), token] = height + gap
            theta[torch.arange(rows), token] = height - gap
        return teacher, theta

    def shifted(self, rows: int, vocab: int) -> Rows:
        """Logits of which only the differences count, moved by up to 100."""
        teacher, theta = self.near(rows, vocab) if self.number(0, 1) < 0.5 else self.sharp(rows, vocab)
        return teacher + self.uniform(-100, 100, rows, 1), theta + self.uniform(-100, 100, rows, 1)

    def deep(self, rows: int, vocab: int) -> Rows:
        """Logits down to -2,000 that are no masks. Beyond some thousands alpha itself has too few digits."""
        teacher, theta = self.sharp(rows, vocab)
        for row in (teacher, theta):
            row -= torch.where(self.uniform(0, 1, rows, vocab) < 0.3, self.uniform(0, 2000, rows, vocab), 0.0)
        return teacher, theta


FAMILIES: dict[str, Callable[[Draw, int, int], Rows]] = {
    "sharp": Draw.sharp,
    "adversarial": Draw.adversarial,
    "levels": Draw.levels,
    "one_hot": Draw.one_hot,
    "agreeing": Draw.agreeing,
    "bf16": Draw.bf16,
    "grammar": Draw.grammar,
    "disjoint": Draw.disjoint,
    "ordinary": Draw.ordinary,
    "near": Draw.near,
    "rare_token": Draw.rare_token,
    "shifted": Draw.shifted,
    "deep": Draw.deep,
}


ELEMENTS = 2**16
"""Rows times lanes of a program: Triton allows 2^20 elements a tensor, and the largest has 16 for each."""


def one_program(vocab: int) -> LaunchShape:
    """A launch of as many rows as Triton's interpreter holds in a program, which costs about the same whatever they are."""
    lanes = min(next_power_of_2(vocab), 1024)
    rows = min(ELEMENTS // lanes, 1024)
    return LaunchShape(rows, splits=1, split_size=-(-vocab // lanes) * lanes, sub=1, lanes=lanes, num_warps=1)


def few_places(vocab: int) -> LaunchShape:
    """Several tiles a step and steps a row, as a GPU searches it, with fewer places than tokens."""
    lanes = max(next_power_of_2(vocab) // 64, 2)
    return LaunchShape(
        min(ELEMENTS // (2 * lanes), 512), 1, -(-vocab // lanes) * lanes, sub=2, lanes=lanes, num_warps=1
    )


def some_budget(draw: Draw, method: Method) -> dict[str, float]:
    """For `KL_BUDGET` a budget between 1e-6 and 30 nats; other methods need no setting."""
    return {"kl_budget": 10 ** draw.number(-6, 1.5)} if method == Method.KL_BUDGET else {}


@dataclass(frozen=True)
class Truth:
    """Rows mixed in float64."""

    has_common: torch.Tensor
    """`[rows]` bool: some token is allowed by both models; elsewhere the rest means nothing."""
    log_theta: torch.Tensor
    """`[rows, vocab]`: 0 where there is no mixture."""
    log_ratio: torch.Tensor
    """`[rows, vocab]`: log teacher - log theta, 0 where there is no mixture."""
    log_q: torch.Tensor
    """`[rows, vocab]`, -inf where there is no mixture."""
    alpha: torch.Tensor
    """`[rows]`."""
    kl_theta: torch.Tensor
    """`[rows]`: D_KL(q || theta)."""
    kl_teacher: torch.Tensor
    """`[rows]`: D_KL(q || teacher)."""


def truth(
    teacher: torch.Tensor,
    theta: torch.Tensor,
    method: Method = Method.KL_SYMMETRY,
    *,
    alpha: float = 0.5,
    kl_budget: float = INF,
    js_sensitivity: float = 50.0,
) -> Truth:
    """q* of many rows by bisection in float64; `vllm_optimal_sampling.kernels.reference` does it one row at a time."""
    support = (teacher > LOWEST) & (theta > LOWEST)
    has_common = support.any(-1)
    support[:, 0] |= ~has_common
    u = torch.where(support, torch.where(has_common[:, None], theta, 0.0).double(), -INF).log_softmax(-1)
    v = torch.where(support, torch.where(has_common[:, None], teacher, 0.0).double(), -INF).log_softmax(-1)
    u_inside = torch.where(support, u, 0.0)
    r = torch.where(support, v - u_inside, 0.0)

    def tilted(at: torch.Tensor) -> torch.Tensor:
        return torch.where(support, u_inside + at[:, None] * r, -INF)

    def log_z(at: torch.Tensor) -> torch.Tensor:
        return tilted(at).logsumexp(-1)

    def g(at: torch.Tensor) -> torch.Tensor:
        return (tilted(at).softmax(-1) * r).sum(-1)

    zero = torch.zeros(len(teacher), dtype=torch.float64)
    if method == Method.FIXED:
        found = zero + alpha
    elif method == Method.REVERSE_KL_SYMMETRY:
        kl_theta_teacher, kl_teacher_theta = -g(zero), g(zero + 1)
        total = kl_theta_teacher + kl_teacher_theta
        # Between rows that agree to the last bit of float64 both are rounding, which any alpha will do for.
        found = torch.where(total > 0, kl_teacher_theta / total, 0.5).clamp(0, 1)
    elif method == Method.JS_GATE:
        log_middle = torch.logaddexp(u, v) - math.log(2)
        parts = [torch.where(support, p.exp() * (p - log_middle), 0.0).sum(-1) for p in (u, v)]
        found = 1 - torch.tanh(js_sensitivity / 2 * (parts[0] + parts[1]) / 2)
    else:
        assert method in SOLVING

        def increasing(at: torch.Tensor) -> torch.Tensor:
            if method == Method.KL_BUDGET:
                return at * g(at) - log_z(at) - kl_budget
            return g(at) if method == Method.KL_SYMMETRY else log_z(-at) - log_z(2 - at)

        low, high = zero, zero + 1
        for _ in range(64):
            middle = (low + high) / 2
            below = increasing(middle) < 0
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        found = torch.where(increasing(zero) == increasing(zero + 1), 0.5, (low + high) / 2)
        if method == Method.KL_BUDGET:
            found = torch.where(increasing(zero + 1) <= 0, 1.0, found)
    log_q = tilted(found).log_softmax(-1)
    slope, value = g(found), log_z(found)
    return Truth(has_common, u_inside, r, log_q, found, found * slope - value, (found - 1) * slope - value)


NEAR_LIMIT = 2e-6
"""Of a row's mass: a nucleus whose mass is so near to what was asked can be a token off, as sums are float32."""


def supported(
    teacher: torch.Tensor, theta: torch.Tensor, top_k: int, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[rows, vocab]`: the tokens within the teacher's top k and nucleus, by a sort in float64. `[rows]`: whether another
    nucleus would do as well."""
    near = torch.zeros(len(teacher), dtype=torch.bool)
    logits = torch.where((teacher > LOWEST) & (theta > LOWEST), teacher, -INF)
    if top_k:
        floor = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = torch.where(logits >= floor, logits, -INF)
    if top_p < 1:
        sorted_logits = logits.sort(descending=True).values
        mass = sorted_logits.double().softmax(-1).cumsum(-1)
        floor = sorted_logits.gather(-1, (mass < top_p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1))
        near = ((mass - top_p).abs() < NEAR_LIMIT).any(-1)
        logits = torch.where(logits >= floor, logits, -INF)
    return logits > -INF, near


@dataclass(frozen=True)
class Verdict:
    """How far a kernel's rows are off, each `[rows]` as parts of what is allowed: above 1 is wrong."""

    total_variation: torch.Tensor
    kl_gap: torch.Tensor
    """KL symmetry: |E_q[r]| as part of 1e-3 nats, or of what one ulp of alpha moves where that is more. KL budget: by how
    much D_KL(q || theta) is off the reference's, in the same way. Else 0."""
    normalised: torch.Tensor
    kl: torch.Tensor
    """The record's two divergences."""
    flags: torch.Tensor
    """Whether a row is flagged without need or not flagged with, or has mass where it must not; or, by its own record, is
    above its KL budget."""

    def worst(self) -> torch.Tensor:
        parts = (self.total_variation, self.kl_gap, self.normalised, self.kl, self.flags)
        return torch.stack(parts).nan_to_num(nan=INF).amax(0)


def judge(
    teacher: torch.Tensor,
    theta: torch.Tensor,
    method: Method = Method.KL_SYMMETRY,
    *,
    theta_dtype: torch.dtype = torch.float32,
    shape: LaunchShape | None = None,
    support_top_k: int = 0,
    support_top_p: float = 1.0,
    **settings: float,
) -> Verdict:
    """Mix the rows in one call and compare them with float64. `settings` are those that `truth` takes.

    `shape` is for Triton's interpreter, whose programs hold up to a thousand rows; a GPU has its own.
    A row whose nucleus can be another one is right.
    """
    limits = {"support_top_k": support_top_k, "support_top_p": support_top_p}
    mixed = mix(
        list(zip(teacher, theta, strict=True)),
        method,
        theta_dtype=theta_dtype,
        shape=shape if INTERPRETED else None,
        **limits,
        **settings,
    )
    as_read = theta.to(theta_dtype).float()
    inside, near_limit = supported(teacher, as_read, support_top_k, support_top_p)
    wanted = truth(torch.where(inside, teacher, -INF), as_read, method, **settings)
    some = wanted.has_common
    rows = torch.where(some[:, None], mixed.rows, 0.0).double()
    record = mixed.record
    q = rows.softmax(-1)
    found = record.alpha[:, 0]
    mean = (q * wanted.log_ratio).sum(-1)
    ulp = (torch.nextafter(found, torch.tensor(2.0)) - found).double()
    variance = (q * wanted.log_ratio**2).sum(-1) - mean**2
    gap, of_one_ulp = torch.zeros_like(mean), ulp * variance
    if method == Method.KL_SYMMETRY:
        gap = mean.abs()
    elif method == Method.KL_BUDGET:
        log_q = torch.where(q > 0, rows.log_softmax(-1), 0.0)
        gap = ((q * (log_q - wanted.log_theta)).sum(-1) - wanted.kl_theta).abs()
        of_one_ulp *= found
    gap /= torch.clamp(of_one_ulp, min=tolerances.KL_GAP)
    off = torch.stack([record.kl_theta[:, 0] - wanted.kl_theta, record.kl_teacher[:, 0] - wanted.kl_teacher]).abs()
    size = torch.stack([wanted.kl_theta, wanted.kl_teacher]) + 1
    # Away from KL symmetry the divergences move with alpha to first order, by their difference.
    relative = tolerances.KL_RELATIVE if method == Method.KL_SYMMETRY else tolerances.KL_RELATIVE_AWAY
    flags = (record.fallback[:, 0] == some) | (some & ((mixed.rows > -INF) != (wanted.log_q > -INF)).any(-1))
    if method == Method.KL_BUDGET:
        flags |= some & (record.kl_theta[:, 0] > mixed.settings.kl_budget)
    logits = torch.where(q > 0, teacher.abs() + theta.abs(), 0.0).double()
    normalised = tolerances.NORMALISED + tolerances.NORMALISED_RELATIVE * (q * logits).sum(-1)
    none = torch.zeros(len(rows), dtype=torch.float64)
    flags &= ~near_limit
    some = some & ~near_limit
    return Verdict(
        total_variation=torch.where(
            some, (q - wanted.log_q.exp()).abs().sum(-1) / 2 / tolerances.TOTAL_VARIATION, none
        ),
        kl_gap=torch.where(some, gap, none),
        normalised=torch.where(some, rows.logsumexp(-1).abs() / normalised, none),
        kl=torch.where(some, (off / size).amax(0) / relative, none),
        flags=torch.where(flags, INF, 0.0).double(),
    )
