"""`mix_` against the float64 reference, and by what must hold of any mixture."""

from typing import Any

import call
import pytest
import tolerances
import torch
from adversarial_rows import Pair, families
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from vllm_optimal_sampling.kernels import NEVER, Kind, Method, MixRecord, MixScratch, MixSettings, mix_, reference
from vllm_optimal_sampling.kernels.scratch import READINGS, LaunchShape

VOCAB = 997
GEOMETRIC_METHODS = [method for method in Method if method != Method.ARITHMETIC]
# One row a program, several splits, several tiles a step and steps a split: what a GPU runs, in small.
LIKE_A_GPU = LaunchShape(rows=1, splits=2, split_size=512, sub=2, lanes=128, num_warps=1)


def all_pairs(vocab: int = VOCAB, seed: int = 0) -> list[tuple[str, Pair]]:
    return [(name, pair) for name, pairs in families(vocab, seed).items() for pair in pairs]


def entropy(row: torch.Tensor) -> float:
    p = row.double().softmax(0)
    return float(-torch.where(p > 0, p * p.log(), 0.0).sum())


def check(
    mixed: call.Mixed, pairs: list[Pair], expected: list[reference.Mixture], names: list[str], method: Method
) -> None:
    """Every row, its record, and that -inf is where it has to be and nowhere else."""
    for i, ((teacher, theta), wanted, name) in enumerate(zip(pairs, expected, names, strict=True)):
        row, record = mixed.rows[i], mixed.record
        at = f"{method.name} {name} (row {i})"
        assert record.fallback[i, 0].item() == wanted.fallback, at
        if wanted.fallback:
            assert torch.equal(row, teacher), at
            continue
        # An entropy row of two near-certain models: see tolerances.py.
        if method == Method.ENTROPY and entropy(teacher) + entropy(theta) < tolerances.CERTAIN_ROWS:
            assert abs(record.alpha[i, 0].item() - wanted.alpha) < tolerances.ALPHA_OF_CERTAIN_ROWS, at
            continue
        limit = tolerances.TOTAL_VARIATION_ENTROPY if method == Method.ENTROPY else tolerances.TOTAL_VARIATION
        assert call.total_variation(row, wanted.log_q) < limit, at
        assert abs(row.double().logsumexp(0).item()) < tolerances.NORMALISED, at
        assert torch.equal(row == -torch.inf, wanted.log_q == -torch.inf), at
        if method == Method.KL_SYMMETRY:
            assert call.kl_gap(row, teacher, theta) < tolerances.KL_GAP, at
        relative = tolerances.KL_RELATIVE if method == Method.KL_SYMMETRY else tolerances.KL_RELATIVE_AWAY
        # Where alpha is not at the root, both divergences move with it by their difference.
        absolute = relative * (1 + abs(wanted.kl_theta - wanted.kl_teacher) if method == Method.ENTROPY else 1)
        for got, want in ((record.kl_theta, wanted.kl_theta), (record.kl_teacher, wanted.kl_teacher)):
            assert got[i, 0].item() == pytest.approx(want, rel=relative, abs=absolute), at


@pytest.mark.parametrize("method", Method)
def test_the_reference_computes_where_its_rows_lie(method: Method) -> None:
    """On a GPU too, where benchmarks need it: nothing is made elsewhere, here on a device that computes nothing."""
    teacher, theta = families(VOCAB)["ordinary"][0]
    asked = {"support_top_k": 50, "support_top_p": 0.9, "max_js_divergence": 0.6}
    expected = reference.mix(teacher, theta, method, **asked)
    with torch.device("meta"):
        found = reference.mix(teacher, theta, method, **asked)
    assert torch.equal(found.log_q, expected.log_q)


@pytest.mark.parametrize("method", Method)
def test_adversarial_rows_match_float64(method: Method) -> None:
    named = all_pairs()
    pairs = [pair for _, pair in named]
    mixed = call.mix(pairs, method, alpha=0.3)
    check(mixed, pairs, call.references(pairs, method, alpha=0.3), [name for name, _ in named], method)


@pytest.mark.full
@pytest.mark.parametrize("vocab", [1, 2, 500, 512, 8191, 20_011])
@pytest.mark.parametrize("method", Method)
def test_adversarial_rows_match_float64_at_every_width(method: Method, vocab: int) -> None:
    if vocab < 12:
        rows = torch.randn(400, 2, vocab, generator=torch.Generator().manual_seed(vocab)) * 9
        named = [(f"random {i}", (teacher, theta)) for i, (teacher, theta) in enumerate(rows)]
    else:
        named = all_pairs(vocab, seed=vocab)
    pairs = [pair for _, pair in named]
    mixed = call.mix(pairs, method, alpha=0.7)
    check(mixed, pairs, call.references(pairs, method, alpha=0.7), [name for name, _ in named], method)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_theta_in_half_precision(dtype: torch.dtype) -> None:
    named = [(name, (t, s.to(dtype).float())) for name, (t, s) in all_pairs(seed=1) if name != "finite_masks"][::3]
    pairs = [pair for _, pair in named]
    mixed = call.mix(pairs, theta_dtype=dtype)
    check(mixed, pairs, call.references(pairs), [name for name, _ in named], Method.KL_SYMMETRY)


@pytest.mark.parametrize("method", [Method.KL_SYMMETRY, Method.ESS_BALANCE, Method.ARITHMETIC])
def test_split_rows_give_the_same(method: Method) -> None:
    """The shape of a GPU launch: partial sums of two splits with two steps each, the last partly empty."""
    names = ["ordinary", "far", "disjoint_peaks", "halves_40", "grammar_2", "minus_inf_in_theta"]
    pairs = [families(VOCAB)[name][0] for name in names]
    mixed = call.mix(pairs, method, alpha=0.3, shape=LIKE_A_GPU, max_js_divergence=0.6931)
    whole = call.mix(pairs, method, alpha=0.3, max_js_divergence=0.6931)
    assert torch.equal(mixed.record.fallback, whole.record.fallback)
    for i, name in enumerate(names):
        assert call.total_variation(mixed.rows[i], whole.rows[i]) < tolerances.SAME_DISTRIBUTION, name
        assert torch.equal(mixed.rows[i] == -torch.inf, whole.rows[i] == -torch.inf), name
    for name in ("kl_theta", "kl_teacher", "teacher_lse", "theta_lse", "log_z"):
        torch.testing.assert_close(getattr(mixed.record, name), getattr(whole.record, name), rtol=1e-3, atol=1e-3)


def test_launch_shapes_cover_the_row_and_fit_the_scratch() -> None:
    for vocab in (1, 511, 4096, 32_000, 128_256, 151_936, 262_144, 1_000_000):
        scratch = MixScratch.allocate(9216, vocab, "meta")
        for num_rows in (1, 2, 7, 8, 31, 32, 160, 199, 320, 1280, 9216):
            for interpreted in (True, False):
                shape = LaunchShape.choose(num_rows, vocab, interpreted=interpreted)
                at = f"{num_rows} rows of {vocab}: {shape}"
                assert (shape.splits - 1) * shape.split_size < vocab <= shape.splits * shape.split_size, at
                assert READINGS * num_rows * shape.splits <= len(scratch.partials), at
                # Triton's limit for a tensor, of which the largest is [rows, 16, lanes].
                assert shape.rows * 16 * shape.lanes <= 2**20, at


@pytest.mark.parametrize("num_rows", [1, 199])
def test_any_number_of_rows(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    vocab = 301
    pairs = [
        (torch.randn(vocab, generator=generator) * 3, torch.randn(vocab, generator=generator) * 3)
        for _ in range(num_rows)
    ]
    mixed = call.mix(pairs)
    for i, (teacher, theta) in enumerate(pairs):
        assert call.kl_gap(mixed.rows[i], teacher, theta) < tolerances.KL_GAP
        assert abs(mixed.rows[i].double().logsumexp(0).item()) < tolerances.NORMALISED


def test_identical_rows_have_alpha_one_half_exactly() -> None:
    pairs = families(VOCAB)["equal_rows"] + families(VOCAB)["rows_of_equal_logits"]
    for method in (Method.KL_SYMMETRY, Method.REVERSE_KL_SYMMETRY, Method.ESS_BALANCE):
        assert (call.mix(pairs, method).record.alpha == 0.5).all(), method


def test_alpha_zero_is_theta_and_one_is_the_teacher() -> None:
    named = [(n, p) for n, p in all_pairs() if n not in ("finite_masks", "grammar_1", "grammar_2", "grammar_10")]
    for alpha in (0.0, 1.0):
        for method in (Method.FIXED, Method.ARITHMETIC):
            mixed = call.mix([pair for _, pair in named], method, alpha=alpha)
            for i, (name, (teacher, theta)) in enumerate(named):
                # With alpha 1 the arithmetic mixture does not ask whether theta knows the token.
                both = teacher + (theta if (method, alpha) != (Method.ARITHMETIC, 1.0) else 0)
                alone = torch.where(both > -torch.inf, teacher if alpha else theta, -torch.inf)
                assert call.total_variation(mixed.rows[i], alone) < tolerances.TOTAL_VARIATION, (name, method, alpha)


def test_shifting_either_row_changes_nothing() -> None:
    pairs = [families(VOCAB)[name][0] for name in ("ordinary", "far", "disjoint_peaks", "grammar_10", "flat")]
    plain = call.mix(pairs)
    for shift_teacher, shift_theta in ((100.0, 0.0), (0.0, 100.0), (-60.0, 90.0)):
        shifted = call.mix([(t + shift_teacher, s + shift_theta) for t, s in pairs])
        for i in range(len(pairs)):
            assert call.total_variation(plain.rows[i], shifted.rows[i]) < tolerances.SHIFTED


def test_bounds_hold_after_the_solution() -> None:
    pairs = [families(VOCAB)[name][0] for name in ("ordinary", "far", "disjoint_peaks", "flat_and_peak")]
    for low, high in ((0.9, 1.0), (0.0, 0.05), (0.4, 0.41), (0.3, 0.3)):
        for method in (Method.KL_SYMMETRY, Method.FIXED, Method.ENTROPY):
            mixed = call.mix(pairs, method, alpha=0.99, alpha_min=low, alpha_max=high)
            expected = call.references(pairs, method, alpha=0.99, alpha_min=low, alpha_max=high)
            for i, wanted in enumerate(expected):
                assert low - 1e-7 <= mixed.record.alpha[i, 0] <= high + 1e-7
                assert call.total_variation(mixed.rows[i], wanted.log_q) < tolerances.TOTAL_VARIATION
                assert mixed.record.kl_theta[i, 0].item() == pytest.approx(wanted.kl_theta, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("method", [Method.KL_SYMMETRY, Method.ESS_BALANCE, Method.ARITHMETIC])
@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (40, 1.0), (0, 0.9), (50, 0.8), (5000, 0.999)])
def test_support_is_the_teachers_top_k_and_nucleus(method: Method, top_k: int, top_p: float) -> None:
    names = ["ordinary", "far", "near_one_hot", "grammar_10", "minus_inf_in_theta"]
    pairs = [families(VOCAB)[name][0] for name in names]
    limits: dict[str, Any] = {"support_top_k": top_k, "support_top_p": top_p}
    mixed = call.mix(pairs, method, alpha=0.3, **limits)
    expected = call.references(pairs, method, alpha=0.3, **limits)
    check(mixed, pairs, expected, names, method if method != Method.KL_SYMMETRY else Method.FIXED)


def test_every_token_at_the_support_floor_is_kept() -> None:
    teacher = torch.tensor([5.0, 3.0, 3.0, 3.0, 1.0, -0.0, 0.0, -torch.inf])
    mixed = call.mix([(teacher, torch.zeros(8))] * 2, support_top_k=2)
    assert (mixed.rows[0] > -torch.inf).tolist() == [True] * 4 + [False] * 4
    mixed = call.mix([(teacher, torch.zeros(8))], support_top_k=6)
    assert (mixed.rows[0] > -torch.inf).tolist() == [True] * 7 + [False]


def test_rows_far_apart_go_to_the_teacher_alone() -> None:
    pairs = [families(VOCAB)[name][0] for name in ("ordinary", "far", "disjoint_peaks", "flat", "equal_rows")]
    divergences = [reference.js_divergence(s.double().log_softmax(0), t.double().log_softmax(0)) for t, s in pairs]
    limit = (sorted(divergences)[2] + sorted(divergences)[3]) / 2
    mixed = call.mix(pairs, max_js_divergence=limit)
    assert mixed.record.fallback[:, 0].tolist() == [divergence > limit for divergence in divergences]
    for i, (teacher, theta) in enumerate(pairs):
        if divergences[i] > limit:
            assert torch.equal(mixed.rows[i], teacher)
            u, v = theta.double().log_softmax(0), teacher.double().log_softmax(0)
            assert mixed.record.alpha[i, 0] == 1
            assert mixed.record.kl_teacher[i, 0] == 0
            assert mixed.record.kl_theta[i, 0].item() == pytest.approx(reference.kl(v.exp(), v, u), rel=1e-4)


@pytest.mark.parametrize("method", Method)
def test_rows_that_cannot_be_mixed_are_left_and_flagged(method: Method) -> None:
    plain = torch.randn(50, generator=torch.Generator().manual_seed(1))

    def with_value(value: float) -> torch.Tensor:
        row = plain.clone()
        row[7] = value
        return row

    nan, inf = float("nan"), float("inf")
    first, second = torch.arange(50) < 25, torch.arange(50) >= 25
    pairs = {
        "nan in theta": (plain, with_value(nan)),
        "nan in teacher": (with_value(nan), plain),
        "nan in both": (with_value(nan), with_value(nan)),
        "all nan": (plain * nan, plain * nan),
        "+inf in theta": (plain, with_value(inf)),
        "+inf in teacher": (with_value(inf), plain),
        "nothing in common": (torch.where(first, plain, -inf), torch.where(second, plain, -inf)),
        "empty teacher": (torch.full((50,), -inf), plain),
        "empty theta": (plain, torch.full((50,), -inf)),
    }
    # A sound row beside them keeps its own result.
    mixed = call.mix([*pairs.values(), (plain, plain.flip(0))], method, support_top_p=0.95)
    for i, (name, (teacher, _)) in enumerate(pairs.items()):
        assert mixed.rows[i].view(torch.int32).equal(teacher.view(torch.int32)), name
        assert mixed.record.fallback[i, 0], name
        assert mixed.record.alpha[i, 0] == 1, name
        assert mixed.record.kind[i, 0] == Kind.TEACHER, name
        kl_theta = mixed.record.kl_theta[i, 0]
        assert kl_theta.isnan() if "nan" in name or "+inf" in name else kl_theta.isinf(), name
    assert not mixed.record.fallback[-1, 0]
    assert not mixed.rows[-1].isnan().any()


class TestAddressing:
    """Rows are found by slot and draft position, left alone where they should be, and any strides will do."""

    NUM_SLOTS, NUM_POSITIONS, V = 5, 3, 128

    def setup_method(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.theta = torch.randn(self.NUM_SLOTS, self.NUM_POSITIONS, self.V, generator=generator) * 3
        self.teacher = torch.randn(10, self.V, generator=generator) * 3
        self.slots = torch.tensor([3, 0, 3, -1, 1, 7, 2, 4, 2, 0], dtype=torch.int32)
        self.draft_positions = torch.tensor([2, 0, 0, 0, 1, 1, 2, 0, -1, 3], dtype=torch.int32)
        self.token_positions = torch.tensor([10, 10, 10, 10, 10, 10, 9, 10, 10, 10])
        self.settings = MixSettings.allocate(self.NUM_SLOTS, "cpu")
        self.settings.first_position[:4] = 10
        self.record = MixRecord.allocate(self.NUM_SLOTS, self.NUM_POSITIONS, "cpu")
        self.scratch = MixScratch.allocate(16, 4096, "cpu")

    def mix(self, teacher: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        mix_(
            teacher,
            theta,
            self.slots,
            self.draft_positions,
            self.token_positions,
            self.settings,
            self.record,
            self.scratch,
        )
        return teacher

    # Row 6 is a teacher-only token, row 7's request opted out, the others have no slot or position.
    MIXED, LEFT = (0, 1, 2, 4), (3, 5, 6, 7, 8, 9)

    def check(self, rows: torch.Tensor) -> None:
        for i in self.MIXED:
            theta = self.theta[self.slots[i], self.draft_positions[i]]
            expected = reference.mix(self.teacher[i], theta)
            assert call.total_variation(rows[i], expected.log_q) < tolerances.TOTAL_VARIATION, i
        for i in self.LEFT:
            assert torch.equal(rows[i], self.teacher[i]), i

    def test_rows_are_found_by_slot_and_position(self) -> None:
        self.check(self.mix(self.teacher.clone(), self.theta))

    def test_rows_of_strided_buffers(self) -> None:
        rows = torch.full((10, 2, self.V + 5), 7.0)[:, 0, 3 : 3 + self.V]
        rows.copy_(self.teacher)
        theta = torch.full((self.NUM_POSITIONS, self.NUM_SLOTS, self.V + 3), 7.0).transpose(0, 1)[..., 2 : 2 + self.V]
        theta.copy_(self.theta)
        self.check(self.mix(rows, theta))
        beyond = rows.as_strided((10, 2), (rows.stride(0), 1), rows.storage_offset() + self.V)
        assert (beyond == 7).all()

    def test_chunks_give_what_one_call_gives(self) -> None:
        whole = self.mix(self.teacher.clone(), self.theta)
        record = self.record
        chunked = self.teacher.clone()
        self.record = MixRecord.allocate(self.NUM_SLOTS, self.NUM_POSITIONS, "cpu")
        for start in (0, 4, 8):
            part = slice(start, start + 4)
            mix_(
                chunked[part],
                self.theta,
                self.slots[part],
                self.draft_positions[part],
                self.token_positions[part],
                self.settings,
                self.record,
                self.scratch,
            )
        assert torch.equal(whole, chunked)
        assert torch.equal(record.alpha, self.record.alpha)

    def test_a_teacher_only_token_is_measured_and_not_touched(self) -> None:
        self.settings.method[2] = Method.ARITHMETIC
        self.settings.support_top_k[2] = 3
        self.settings.max_js_divergence[2] = 0.0
        self.mix(self.teacher.clone(), self.theta)
        u, v = self.theta[2, 2].double().log_softmax(0), self.teacher[6].double().log_softmax(0)
        assert self.record.alpha[2, 2] == 1
        assert not self.record.fallback[2, 2]
        assert self.record.kind[2, 2] == Kind.TEACHER
        assert self.record.kl_teacher[2, 2] == 0
        assert self.record.kl_theta[2, 2].item() == pytest.approx(reference.kl(v.exp(), v, u), rel=1e-4)

    def test_an_opted_out_request_keeps_row_and_record(self) -> None:
        self.record.alpha.fill_(7.0)
        self.record.kl_theta.fill_(8.0)
        self.mix(self.teacher.clone(), self.theta)
        assert (self.record.alpha[4] == 7).all()
        assert (self.record.kl_theta[4] == 8).all()
        assert self.settings.first_position[4] == NEVER

    def test_nothing_is_left_in_the_scratch_for_the_next_call(self) -> None:
        first = self.mix(self.teacher.clone(), self.theta)
        for field in ("plan", "solutions", "partials"):
            getattr(self.scratch, field).fill_(float("nan"))
        self.scratch.theta_offset.fill_(-5)
        assert torch.equal(first, self.mix(self.teacher.clone(), self.theta))

    @pytest.mark.parametrize("teacher_width", [100, 128, 200])
    def test_vocabularies_of_different_width(self, teacher_width: int) -> None:
        common = min(teacher_width, self.V)
        self.teacher = torch.randn(10, teacher_width, generator=torch.Generator().manual_seed(6)) * 3
        rows = self.mix(self.teacher.clone(), self.theta)
        self.check(rows)
        for i in self.MIXED:
            assert (rows[i, common:] == -torch.inf).all()
            assert (rows[i, :common] > -torch.inf).all()

    def test_a_theta_of_minus_inf_beyond_its_vocabulary(self) -> None:
        self.theta[..., 100:] = -torch.inf
        rows = self.mix(self.teacher.clone(), self.theta)
        self.check(rows)
        assert (rows[list(self.MIXED), 100:] == -torch.inf).all()


LOGITS = st.one_of(
    st.floats(-80, 80, width=32),
    st.sampled_from([float("-inf"), 0.0, -1e9, 80.0, -80.0]),
    st.floats(-3, 3, width=32),
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    # An example is sixteen rows: shrinking one costs minutes and says little more.
    phases=(Phase.explicit, Phase.generate),
)
@given(
    rows=st.lists(
        st.tuples(st.lists(LOGITS, min_size=8, max_size=8), st.lists(LOGITS, min_size=8, max_size=8)),
        min_size=16,
        max_size=16,
    ),
    method=st.sampled_from(GEOMETRIC_METHODS),
)
def test_any_row_gives_a_distribution_between_the_two(
    rows: list[tuple[list[float], list[float]]], method: Method
) -> None:
    pairs = [(torch.tensor(teacher), torch.tensor(theta)) for teacher, theta in rows]
    mixed = call.mix(pairs, method, alpha=0.25)
    for i, (teacher, theta) in enumerate(pairs):
        row, record = mixed.rows[i], mixed.record
        support = (teacher > reference.LOWEST) & (theta > reference.LOWEST)
        if record.fallback[i, 0]:
            assert torch.equal(row, teacher)
            assert not support.any(), "something in common"
            continue
        assert torch.equal(row > -torch.inf, support)
        assert abs(row.double().logsumexp(0).item()) < tolerances.NORMALISED
        assert 0 <= record.alpha[i, 0] <= 1
        assert record.kl_theta[i, 0] >= 0
        assert record.kl_teacher[i, 0] >= 0
        if method == Method.KL_SYMMETRY:
            assert call.kl_gap(row, teacher, theta) < tolerances.KL_GAP
            # The equal divergence is the largest that any mixture has to its nearer model.
            assert record.kl_theta[i, 0].item() == pytest.approx(record.kl_teacher[i, 0].item(), rel=1e-3, abs=2e-3)
        elif method == Method.FIXED:
            wanted = reference.mix(teacher, theta, method, alpha=0.25)
            assert call.total_variation(row, wanted.log_q) < tolerances.TOTAL_VARIATION
