"""Thousands of rows on which the models disagree, sharply or hardly at all: each within the tolerance, none flagged.

`make soak` tries 100,000 more (`tests/reliability/alpha_rows.py`).
"""

import pytest
import torch
from disagreement import FAMILIES, SOLVING, Draw, Rows, few_places, judge, one_program, some_budget
from hypothesis import HealthCheck, Phase, given, settings, target
from hypothesis import strategies as st
from test_mix import LIKE_A_GPU
from vllm_optimal_sampling.kernels import Method

INF = float("inf")

# teacher, theta. Each was once wrong by a total variation of 0.001 to 0.84.
FOUND: list[tuple[list[float], list[float]]] = [
    # The step to the root left its cell, and was taken for one beyond alpha_max.
    (
        [2.607170343, 0, 0.35792, -18.053, -71.098, 0, 0, -2.2e-16],
        [1.15943849, -76.4092, 0, 0, 0, -67.0223, -1, 0],
    ),
    # Both tests of the error passed by coincidence.
    ([-31.85024642944336, 2, 80, -1e9, 72.838, 0, -1e9, 1], [0, -80, -4.352, 0, -1e9, 0, 0, 0]),
    # alpha ended at 0 or 1.
    ([-4.94, -80.138, -80.194, -159.972, 0.855, -40.18, 0.048, -20.072], [0, -80, -80, -80, -80, 0, 20, -5]),
    ([1.182, -159.934, -20.038, -79.9, 19.998, -19.895, 20.039, 20.105], [-40, 1, 20, 40, -20, 0, 80, 1]),
    ([-INF, 80, 0, -1e9, 80, 80, -1.988, -22.057], [-80, 13.555, -1e9, -1e9, -80, -80, 0, -INF]),
    (
        [0, -1e9, -INF, -46.942, -64.485, -3.682, 0, 0],
        [80, 0, 56.042, 37.877, 61.486, -80, 38.211, 0],
    ),
    ([0.074, -5.028, -20, -80.156, 19.972, 40.022, 40.075, 0.081], [-160, -80, -160, 0, -5, 40, -20, 20]),
    # alpha ended at a node.
    (
        [-6.573, -45.982, -38.804, -23.934, 81.774, -5.533, -14.175, 25.82],
        [-5.369, -37.153, 31.743, 6.467, -8.335, 0.429, -8.221, -20.052],
    ),
    (
        [-INF, -60.183, -80, -50.792, 57.446, -1e9, 0, -34.471],
        [23.132, 33.38, -30.421, -41.268, -5.074, 9.659, -80, -1e9],
    ),
    (
        [69.541, -68.813, 70.675, 69.834, 70.526, 70.413, 68.779, -69.043],
        [-68.954, 71.082, -68.495, -69.635, -71.912, -70.19, -69.943, 70.809],
    ),
    (
        [-67.936, -69.13, 69.141, -68.013, 69.984, -69.272, -70.573, 69.694],
        [69.089, 70.086, -67.736, 69.569, -69.196, 68.913, 69.92, -68.254],
    ),
    # Interpolated in too wide a cell.
    (
        [188.28, 16.47, -40.876, 6.031, -48.414, -71.525, -66.209, -12.665],
        [-82.598, 12.917, -43.074, -16.778, 23.61, 43.777, 132.018, -83.339],
    ),
    (
        [-79.32, -33.373, -86.605, 1.264, 135.254, 67.144, -18.397, 9.794],
        [45.094, 141.441, -7.132, 9.878, -108.666, -101.553, -55.504, -16.938],
    ),
    (
        [12.34, 44.894, 2.58, 3.866, 11.014, -7.876, 2.291, 1.387],
        [2.186, 21.812, -3.748, -22.986, 18.886, -30.802, 5.466, -4.609],
    ),
    # alpha of ess_balance near enough for q, and not for the record: r varies by 830 where a token without weight is apart.
    (
        [-509.066, -4.087, -9.072, 3.456, -1034.471, -1373.618, -1798.082, 45.571],
        [6.912, -8.16, -8.835, 21.683, 25.407, -1493.939, -1243.637, 31.934],
    ),
    # alpha given, near a node where a token 1,780 nats away still counts: the record's slope was off by 7e-3 nats.
    (
        [1.887823343, -1788.249634, -4.698268414, 3.967676163, 0.951499462, 5.323378086, 2.999382019, -8.327626228],
        [-3.226880789, -4.719553947, -5.261196613, 10.359347343, 2.206790924, 5.695861816, 5.736763954, -3.053554535],
    ),
]

# Rows of `tests/reliability/alpha_rows.py`, or of what it was before: family, seed, rows, vocabulary, method.
FOUND_BY_SEED = [
    # Two near-equal models taken for the same, though an unlikely token 24 nats apart decides: TV 1.8e-4.
    ("rare_token", 7 * 1_000_003 + 32, 64, 997, Method.REVERSE_KL_SYMMETRY),
    # The polynomial was followed beyond the nodes that bound its error: a gap of 1.1e-3.
    ("sharp", 22 * 1_000_003, 1024, 16, Method.KL_SYMMETRY),
    ("adversarial", 22 * 1_000_003 + 79, 1024, 8, Method.KL_SYMMETRY),
    # The deviation of r, where rounding had left none of it, made any alpha good enough: TV 1.2e-4.
    ("rare_token", 26 * 1_000_003 + 23, 1024, 64, Method.KL_SYMMETRY),
    # alpha beside a node: its record was off by 14 times what is allowed.
    ("levels", 26 * 1_000_003 + 54, 1024, 8, Method.ESS_BALANCE),
    # Alpha given, and a token 780 nats apart with 2e-6 of theta's mass: the record's slope was off by 1e-2 nats.
    ("deep", 597, 1024, 8, Method.ESS_BALANCE),
    # The judge's own alpha was that of rounding, -4.3: the rows agree to the last bit of float64.
    ("levels", 600, 1024, 8, Method.REVERSE_KL_SYMMETRY),
]


def check(rows: Rows, at: object, method: Method = Method.KL_SYMMETRY, **arguments: object) -> None:
    verdict = judge(*rows, method, **arguments)  # type: ignore[arg-type]
    worst = verdict.worst()
    row = int(worst.argmax())
    assert worst[row] <= 1, (at, method.name, rows[0][row].tolist()[:16], rows[1][row].tolist()[:16], verdict)


@pytest.mark.parametrize("method", SOLVING)
def test_rows_that_were_wrong_once(method: Method) -> None:
    teacher, theta = (torch.tensor([pair[side] for pair in FOUND]) for side in (0, 1))
    for kl_budget in (1e-6, 1e-3, 0.1, 3, 30) if method == Method.KL_BUDGET else (INF,):
        check((teacher, theta), "found", method, kl_budget=kl_budget)
        # The other way round alpha is 1 - alpha.
        check((theta, teacher), "mirrored", method, kl_budget=kl_budget)


@pytest.mark.parametrize(("family", "seed", "rows", "vocab", "method"), FOUND_BY_SEED)
def test_rows_that_a_search_found(family: str, seed: int, rows: int, vocab: int, method: Method) -> None:
    draw = Draw(seed)
    # The two numbers that the search draws first.
    draw.integers(8, 1)
    draw.integers(4, 1)
    check(FAMILIES[family](draw, rows, vocab), family, method, shape=one_program(vocab))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """Some 2,000 rows of each for every method that solves."""
    for method in SOLVING:
        for vocab in (8, 64, 997):
            shape = one_program(vocab)
            draw = Draw(vocab + method)
            rows = FAMILIES[family](draw, shape.rows, vocab)
            check(rows, (family, vocab), method, shape=shape, **some_budget(draw, method))
    # A given alpha is no solution, but its normaliser and record are interpolated in the same way.
    for alpha in (0.02, 0.6):
        check(FAMILIES[family](Draw(4), 64, 64), (family, alpha), Method.FIXED, alpha=alpha)


@pytest.mark.parametrize("noise", [0.5, 1, 2, 3, 6, 10, 15, 25, 40, 60])
def test_sharp_disagreement(noise: float) -> None:
    for vocab in (8, 64, 4096):
        shape = one_program(vocab)
        rows = Draw(int(noise * 10) + vocab).sharp(shape.rows, vocab, noise)
        check(rows, (noise, vocab), shape=shape)


@pytest.mark.parametrize("family", ["sharp", "adversarial", "disjoint", "agreeing", "near", "shifted"])
def test_families_in_splits(family: str) -> None:
    """As a GPU cuts a row: partial sums of two splits, of several steps each."""
    check(FAMILIES[family](Draw(2), 8, 997), family, shape=LIKE_A_GPU)


@pytest.mark.parametrize("family", ["adversarial", "levels", "grammar", "shifted", "deep"])
def test_families_within_limits(family: str) -> None:
    """A thousand rows of each, most of whose tokens a program has no place for."""
    for i, (top_k, top_p) in enumerate(((20, 1.0), (40, 0.8))):
        rows = FAMILIES[family](Draw(60 + i), 512, 64)
        limits = {"support_top_k": top_k, "support_top_p": top_p}
        check(rows, (family, limits), Method.FIXED, shape=few_places(64), alpha=0.4, **limits)


@pytest.mark.parametrize("family", ["sharp", "disjoint", "near"])
def test_families_with_theta_in_bf16(family: str) -> None:
    check(FAMILIES[family](Draw(3), 64, 256), family, theta_dtype=torch.bfloat16)


ROWS, WIDTH = 16, 6
# From one scale of disagreement to the next, with the values that masks, ties and sure models have.
LOGITS = st.one_of(
    st.floats(-90, 90, width=32),
    st.sampled_from([0.0, -INF, -1e9, 80.0, -80.0, 160.0, -160.0]),
    st.floats(-4, 4, width=32),
)


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.target),
)
@given(
    rows=st.lists(
        st.lists(LOGITS, min_size=2 * WIDTH, max_size=2 * WIDTH),
        min_size=ROWS,
        max_size=ROWS,
    ),
    method=st.sampled_from(SOLVING),
    kl_budget=st.floats(2**-19, 30, width=32),
)
def test_no_row_is_wrong_where_hypothesis_looks_for_large_gaps(
    rows: list[list[float]], method: Method, kl_budget: float
) -> None:
    teacher, theta = torch.tensor(rows).split(WIDTH, dim=-1)
    verdict = judge(teacher.contiguous(), theta.contiguous(), method, kl_budget=kl_budget)
    target(float(verdict.total_variation.max()), label="total variation")
    target(float(verdict.kl_gap.max()), label="KL gap")
    worst = verdict.worst()
    row = int(worst.argmax())
    assert worst[row] <= 1, (method.name, kl_budget, teacher[row].tolist(), theta[row].tolist(), verdict)
