"""The support's floor where few places search many tokens, so that every way to it is taken."""

from collections.abc import Callable

import call
import pytest
import tolerances
import torch
from vllm_optimal_sampling.kernels import Method
from vllm_optimal_sampling.kernels.scratch import LaunchShape

VOCAB = 700
INF = float("inf")
# 32 places that keep four tokens each: 20 tokens a place, in 22 steps.
FEW_PLACES = LaunchShape(rows=128, splits=1, split_size=704, sub=2, lanes=8, num_warps=1)
# top k, top p
LIMITS = [
    (1, 1.0),
    (20, 1.0),
    (300, 1.0),
    (VOCAB - 1, 1.0),
    (2**31 - 1, 1.0),
    (0, 1e-6),
    (0, 0.5),
    (0, 0.97),
    (0, 0.999),
    (400, 0.9),
]


def rows_of_kinds() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(VOCAB, generator=generator)

    def changed(change: Callable[[torch.Tensor], None]) -> torch.Tensor:
        row = normal(3)
        change(row)
        return row

    return {
        "ordinary": normal(3),
        # A few hundred distinct values, most of them several times.
        "bf16": (normal(3) + 20).bfloat16().float(),
        "five values": torch.randint(0, 5, (VOCAB,), generator=generator).float(),
        "equal": torch.zeros(VOCAB),
        "flat": normal(0.01),
        "about zero, by key far apart": normal(1e-3),
        "far apart": normal(300),
        # What one place meets and what the bracket holds are the same tokens.
        "sorted": torch.linspace(-20, 20, VOCAB),
        "largest at one place": changed(lambda row: row[::16].add_(15)),
        "one sure token": changed(lambda row: row[17].add_(60)),
        "half of it masked": changed(lambda row: row[::2].fill_(-INF)),
        "seven tokens": changed(lambda row: row[7:].fill_(-INF)),
    }


@pytest.mark.parametrize("method", [Method.FIXED, Method.ARITHMETIC])
def test_every_way_to_the_floor(method: Method) -> None:
    """Tokens of the mixture, against a sort in float64. Some of theta's are at -inf, which ARITHMETIC does not ask."""
    generator = torch.Generator().manual_seed(4)
    cases = []
    for name, teacher in rows_of_kinds().items():
        theta = torch.randn(VOCAB, generator=generator)
        theta[torch.rand(VOCAB, generator=generator) < 0.1] = -INF
        cases += [(name, (teacher, theta), limits) for limits in LIMITS]
    top_k, top_p = (torch.tensor([limits[i] for _, _, limits in cases]) for i in (0, 1))
    mixed = call.mix(
        [pair for _, pair, _ in cases], method, alpha=0.3, shape=FEW_PLACES, support_top_k=top_k, support_top_p=top_p
    )
    for i, (name, pair, (k, p)) in enumerate(cases):
        (wanted,) = call.references([pair], method, alpha=0.3, support_top_k=k, support_top_p=p)
        at = f"{name}: top k {k}, top p {p}"
        assert mixed.record.fallback[i, 0].item() == wanted.fallback, at
        # A mixture can be below what float64 holds where the models are 1,000 nats apart.
        kept = mixed.rows[i].double().exp() > 0
        assert torch.equal(kept, wanted.log_q.exp() > 0), at
        assert call.total_variation(mixed.rows[i], wanted.log_q) < tolerances.TOTAL_VARIATION, at


def test_rows_of_one_program_do_not_share_their_searches() -> None:
    """A limited row beside one that only balances: what is read again for one of them is not the other's."""
    generator = torch.Generator().manual_seed(5)
    pairs = [tuple(3 * torch.randn(2, 200, generator=generator)) for _ in range(4)]
    asked = [
        (Method.FIXED, 30, 0.8),
        (Method.ESS_BALANCE, 0, 1.0),
        (Method.ESS_BALANCE, 0, 0.9),
        (Method.JS_GATE, 0, 1.0),
    ]
    methods, top_k, top_p = (torch.tensor([of_row[i] for of_row in asked]) for i in range(3))
    mixed = call.mix(pairs, methods, support_top_k=top_k, support_top_p=top_p)
    for i, (method, k, p) in enumerate(asked):
        alone = call.mix([pairs[i]], method, support_top_k=k, support_top_p=p)
        assert call.total_variation(mixed.rows[i], alone.rows[0]) < tolerances.SAME_DISTRIBUTION, asked[i]
        assert mixed.record.alpha[i, 0].item() == pytest.approx(alone.record.alpha[0, 0].item(), abs=1e-5), asked[i]
