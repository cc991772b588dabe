"""The quick first reading: as right as the usual one, taken by ordinary rows, and left where it would not be right."""

from dataclasses import replace

import call
import pytest
import tolerances
import torch
from adversarial_rows import families
from disagreement import judge, one_program
from test_mix import VOCAB, all_pairs, check
from vllm_optimal_sampling.kernels import Method
from vllm_optimal_sampling.kernels.scratch import LaunchShape

# Two splits a row, which take their tokens 64 at a time; the first 64 give the references. One program for all rows.
QUICK = LaunchShape(rows=64, splits=2, split_size=512, sub=1, lanes=128, num_warps=1, each=4)


@pytest.mark.parametrize("method", [Method.KL_SYMMETRY, Method.ENTROPY, Method.ARITHMETIC])
def test_adversarial_rows_match_float64(method: Method) -> None:
    named = all_pairs()
    pairs = [pair for _, pair in named]
    mixed = call.mix(pairs, method, alpha=0.3, shape=QUICK)
    check(mixed, pairs, call.references(pairs, method, alpha=0.3), [name for name, _ in named], method)


def test_ordinary_rows_are_read_quickly() -> None:
    """Sums in another order differ in their last bits. One row a program, as on a GPU."""
    pairs = families(VOCAB)["ordinary"][:2]
    quick, usual = (call.mix(pairs, shape=replace(QUICK, rows=1, each=each)).rows for each in (4, 0))
    assert (quick != usual).any(dim=1).all()
    for i, wanted in enumerate(call.references(pairs)):
        assert call.total_variation(quick[i], wanted.log_q) < tolerances.TOTAL_VARIATION


@pytest.mark.parametrize("deviation", [1e-2, 1e-3, 1e-4])
def test_rows_that_agree_but_for_a_token_without_weight(deviation: float) -> None:
    """That token is the teacher's reference and not theta's, so that r is summed far from where it is: read again as usual."""
    vocab, apart = 1024, 8.0
    generator = torch.Generator().manual_seed(1)
    shape = replace(one_program(vocab), each=8)
    rows = shape.rows

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(rows, vocab, generator=generator)

    base = noise(2.5)
    base[:, : vocab // 2] -= 40
    teacher, theta = base + noise(deviation), base + noise(deviation)
    likeliest = teacher[:, : vocab // 2].amax(dim=1)
    teacher[:, 5], theta[:, 5] = likeliest + apart, likeliest - 20
    assert judge(teacher, theta, Method.KL_SYMMETRY, shape=shape).worst().max() <= 0.2
