"""The bound on which alpha is accepted: for every token, whatever its weight, interpolation is off by no more."""

import pytest
import torch
import triton
import triton.language as tl
from vllm_optimal_sampling.kernels.interpolate import coefficients, highest_kappa, kappa_of, polynomial_at


@triton.jit
def interpolate_kernel(
    data_ptr,  # [7, SIZE] fp64: Z at -1 and 1, Z' there, Z'' at -1, 0 and 1
    t_ptr,  # [SIZE] fp64
    out_ptr,  # [4, SIZE] fp64, out: Z, Z', kappa, and the highest on the way from 0 to t
    WITH_VALUES: tl.constexpr,
    SIZE: tl.constexpr,
):
    index = tl.arange(0, SIZE)
    t = tl.load(t_ptr + index)
    with_values = (t == t) & WITH_VALUES
    c1, c2, c3, c4, c5, c6, c7 = coefficients(
        tl.load(data_ptr + index),
        tl.load(data_ptr + SIZE + index),
        tl.load(data_ptr + 2 * SIZE + index),
        tl.load(data_ptr + 3 * SIZE + index),
        tl.load(data_ptr + 4 * SIZE + index),
        tl.load(data_ptr + 5 * SIZE + index),
        tl.load(data_ptr + 6 * SIZE + index),
        with_values,
    )
    z, first, _ = polynomial_at(t, c1, c2, c3, c4, c5, c6, c7)
    tl.store(out_ptr + index, z)
    tl.store(out_ptr + SIZE + index, first)
    tl.store(out_ptr + 2 * SIZE + index, kappa_of(t, with_values))
    tl.store(out_ptr + 3 * SIZE + index, highest_kappa(t, with_values))


def interpolated(
    x: torch.Tensor, t: torch.Tensor, with_values: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Z' at t for the one token `exp(t x)`, `[len(x)]` float64, what is interpolated of it, and the kernel's whole output.

    The kernel's Z(0) = 1 and Z'(0) = 0 are reached by adding a straight line, which is interpolated without error.
    """
    minus, plus = torch.exp(-x), torch.exp(x)
    data = torch.stack([minus + x, plus - x, x * minus - x, x * plus - x, x * x * minus, x * x, x * x * plus])
    out = torch.empty(4, len(x), dtype=torch.float64)
    interpolate_kernel[(1,)](data, t, out, WITH_VALUES=with_values, SIZE=len(x))
    return x * torch.exp(t * x) - x, out[1], out


@pytest.mark.parametrize("with_values", [True, False])
def test_no_token_is_interpolated_worse_than_the_bound(with_values: bool) -> None:
    size = torch.cat([torch.logspace(-1, 1, 1024), torch.linspace(10, 120, 1024)]).double()
    largest = 0.0
    for t in torch.linspace(-2, 2, 161, dtype=torch.float64):
        for x in (size, -size):
            first, found, out = interpolated(x, t.expand_as(x).contiguous(), with_values)
            size_of_bound = x**2 * (torch.exp(2 * x) + torch.exp(-2 * x))
            bound = out[2] * size_of_bound
            # Cancellation in float64, for small x and at the nodes, where the bound is 0.
            noise = 1e-12 * (1 + x.abs()) * torch.exp(t.abs().clamp(min=1) * x.abs())
            assert ((found - first).abs() <= bound + noise).all(), (t, with_values)
            # So the integral of Z' is off by no more than this.
            off = (out[0] - (torch.exp(t * x) - t * x)).abs()
            assert (off <= t.abs() * out[3] * size_of_bound + noise).all(), (t, with_values)
            largest = max(largest, float(((found - first).abs() / (bound + noise)).max()))
    # A bound that nothing comes near would send rows to be read again for nothing.
    assert largest > 0.7


def test_the_nodes_are_interpolated_exactly() -> None:
    x = torch.linspace(-3, 3, 64, dtype=torch.float64)
    for node in (-1.0, 0.0, 1.0):
        first, found, out = interpolated(x, torch.full_like(x, node), True)
        torch.testing.assert_close(found, first, rtol=1e-12, atol=1e-12)
        assert (out[2] == 0).all()


@pytest.mark.parametrize("with_values", [True, False])
def test_the_highest_bound_is_the_highest_on_the_way(with_values: bool) -> None:
    t = torch.linspace(0, 2, 2048, dtype=torch.float64)
    kappa, highest = interpolated(torch.ones_like(t), t, with_values)[2][2:]
    assert (highest >= kappa.cummax(0).values * (1 - 1e-6)).all()
    assert (highest <= 1.5 * kappa.cummax(0).values + 1e-12).all()
