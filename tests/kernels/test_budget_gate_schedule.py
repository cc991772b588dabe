"""`KL_BUDGET`, `JS_GATE` and the schedules: against the float64 reference, and by what must hold of them."""

import math
from typing import Any

import call
import pytest
import tolerances
import torch
from adversarial_rows import Pair, families
from disagreement import FAMILIES, Draw, judge
from test_mix import LIKE_A_GPU, check
from vllm_optimal_sampling.kernels import NEVER, Kind, Method, MixRecord, MixScratch, MixSettings, mix_, reference

VOCAB = 301
INF = math.inf
BUDGETS = (1e-6, 1e-3, 0.05, 0.5, 4.0)


def named_pairs(*names: str) -> tuple[list[str], list[Pair]]:
    """An adversarial pair of each family, or of those named."""
    made = families(VOCAB, seed=2)
    return list(names or made), [made[name][0] for name in names or made]


@pytest.mark.parametrize("kl_budget", BUDGETS)
def test_a_budget_is_spent_and_not_exceeded(kl_budget: float) -> None:
    names, pairs = named_pairs()
    mixed = call.mix(pairs, Method.KL_BUDGET, kl_budget=kl_budget)
    expected = call.references(pairs, Method.KL_BUDGET, kl_budget=kl_budget)
    check(mixed, pairs, expected, names, Method.KL_BUDGET)
    record = mixed.record
    for i, (teacher, theta) in enumerate(pairs):
        support = (teacher > reference.LOWEST) & (theta > reference.LOWEST)
        q = mixed.rows[i][support].double().log_softmax(0)
        spent = reference.kl(q.exp(), q, theta[support].double().log_softmax(0))
        assert spent < kl_budget + tolerances.KL_GAP, names[i]
        assert record.kl_theta[i, 0] <= mixed.settings.kl_budget[i], names[i]
        if record.alpha[i, 0] < 1:
            assert spent > kl_budget - tolerances.KL_GAP, names[i]


def test_alpha_grows_with_the_budget_from_theta_to_the_teacher() -> None:
    names, pairs = named_pairs()
    previous = torch.full((len(pairs),), -1.0)
    for kl_budget in (0.0, *BUDGETS, 30.0, INF):
        record = call.mix(pairs, Method.KL_BUDGET, kl_budget=kl_budget).record
        assert (record.alpha[:, 0] >= previous).all(), kl_budget
        previous = record.alpha[:, 0].clone()
    assert (previous == 1).all()
    nothing = call.mix(pairs, Method.KL_BUDGET, kl_budget=0.0)
    for i, (teacher, theta) in enumerate(pairs):
        alone = torch.where((teacher > reference.LOWEST) & (theta > reference.LOWEST), theta, -torch.inf)
        assert call.total_variation(nothing.rows[i], alone) < tolerances.TOTAL_VARIATION, names[i]
        # Rows that cannot be told apart are within any budget.
        assert nothing.record.alpha[i, 0] in (0, 1), names[i]


def test_bounds_hold_before_the_budget() -> None:
    """alpha_min is what the request wants even if it costs more; the record then says how much."""
    _, pairs = named_pairs("ordinary", "far", "disjoint_peaks")
    for low, high in ((0.8, 1.0), (0.0, 0.02)):
        settings = {"kl_budget": 0.05, "alpha_min": low, "alpha_max": high}
        mixed = call.mix(pairs, Method.KL_BUDGET, **settings)
        for i, wanted in enumerate(call.references(pairs, Method.KL_BUDGET, **settings)):
            assert low - 1e-7 <= mixed.record.alpha[i, 0] <= high + 1e-7
            assert call.total_variation(mixed.rows[i], wanted.log_q) < tolerances.TOTAL_VARIATION
            assert mixed.record.kl_theta[i, 0].item() == pytest.approx(wanted.kl_theta, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("js_sensitivity", [1.0, 15.0, 50.0, 100.0])
def test_a_gate_attenuates_as_its_formula_says(js_sensitivity: float) -> None:
    names, pairs = named_pairs()
    for low, high in ((0.0, 1.0), (0.85, 1.0)):
        settings = {"js_sensitivity": js_sensitivity, "alpha_min": low, "alpha_max": high}
        mixed = call.mix(pairs, Method.JS_GATE, **settings)
        check(mixed, pairs, call.references(pairs, Method.JS_GATE, **settings), names, Method.JS_GATE)


def test_a_gate_is_open_for_equal_models_and_shut_for_distant_ones() -> None:
    _, same = named_pairs("equal_rows", "rows_of_equal_logits")
    _, distant = named_pairs("disjoint_peaks", "halves_40", "far")
    bounds = {"alpha_min": 0.25, "alpha_max": 0.75}
    for js_sensitivity in (0.0, 50.0, 1e30, INF):
        record = call.mix(same, Method.JS_GATE, js_sensitivity=js_sensitivity, **bounds).record
        assert (record.alpha == 0.75).all(), js_sensitivity
    assert (call.mix(distant, Method.JS_GATE, js_sensitivity=INF, **bounds).record.alpha == 0.25).all()
    assert (call.mix(distant, Method.JS_GATE, js_sensitivity=1e4, **bounds).record.alpha == 0.25).all()
    assert (call.mix(distant, Method.JS_GATE, js_sensitivity=0.0, **bounds).record.alpha == 0.75).all()


def test_the_gate_sees_models_that_nearly_agree() -> None:
    """A divergence of 1e-8 nats, which is below the rounding of the logarithms it is made of."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(16, 997, generator=generator) * 2.5
    teacher = theta + 1e-4 * torch.randn(16, 997, generator=generator)
    verdict = judge(teacher, theta, Method.JS_GATE, js_sensitivity=1e8)
    assert verdict.worst().max() <= 1, verdict
    alpha = call.mix(list(zip(teacher, theta, strict=True)), Method.JS_GATE, js_sensitivity=1e8).record.alpha[:, 0]
    for i in range(16):
        u, v = theta[i].double().log_softmax(0), teacher[i].double().log_softmax(0)
        assert alpha[i].item() == pytest.approx(reference.js_gate(u, v, 1e8, 0.0, 1.0), abs=2e-3)
        assert 0.05 < alpha[i] < 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gate_on_families_of_disagreement(family: str) -> None:
    for js_sensitivity in (3.0, 50.0):
        rows = FAMILIES[family](Draw(int(js_sensitivity)), 256, 64)
        worst = judge(*rows, Method.JS_GATE, js_sensitivity=js_sensitivity).worst()
        assert worst.max() <= 1, (family, js_sensitivity, worst.argmax(), worst.max())


@pytest.mark.parametrize("method", [Method.KL_BUDGET, Method.JS_GATE])
def test_inside_the_teachers_support(method: Method) -> None:
    names, pairs = named_pairs("ordinary", "far", "near_one_hot", "grammar_10", "minus_inf_in_theta")
    for limits in ({"support_top_k": 40}, {"support_top_p": 0.9}, {"support_top_k": 50, "support_top_p": 0.8}):
        settings: dict[str, Any] = {"kl_budget": 0.05, "js_sensitivity": 10.0, **limits}
        expected = call.references(pairs, method, **settings)
        check(call.mix(pairs, method, **settings), pairs, expected, names, method)


@pytest.mark.parametrize("method", [Method.KL_BUDGET, Method.JS_GATE])
def test_split_rows_give_the_same(method: Method) -> None:
    names = ("ordinary", "far", "disjoint_peaks", "halves_40", "grammar_2", "minus_inf_in_theta")
    pairs = [families(997)[name][0] for name in names]
    settings = {"kl_budget": 0.05, "js_sensitivity": 10.0}
    mixed, whole = (call.mix(pairs, method, shape=shape, **settings) for shape in (LIKE_A_GPU, None))
    check(mixed, pairs, call.references(pairs, method, **settings), list(names), method)
    for name in ("alpha", "kl_theta", "log_z"):
        torch.testing.assert_close(getattr(mixed.record, name), getattr(whole.record, name), rtol=1e-3, atol=1e-3)


def test_methods_side_by_side_in_one_batch() -> None:
    """Every slot has its own method, budget and schedule; each row is what it would be alone."""
    names, pairs = named_pairs()
    rows = torch.stack([teacher for teacher, _ in pairs])
    theta = torch.stack([theta for _, theta in pairs])[:, None, :]
    n = len(pairs)
    settings, record = MixSettings.allocate(n, "cpu"), MixRecord.allocate(n, 1, "cpu")
    settings.first_position.zero_()
    methods = [list(Method)[i % len(Method)] for i in range(n)]
    budgets = [BUDGETS[i % len(BUDGETS)] for i in range(n)]
    settings.method.copy_(torch.tensor(methods))
    settings.kl_budget.copy_(torch.tensor(budgets))
    settings.alpha.fill_(0.3)
    slots, zeros = torch.arange(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
    mix_(rows, theta, slots, zeros, zeros.long(), settings, record, MixScratch.allocate(n, VOCAB, "cpu"))
    mixed = call.Mixed(rows, record, settings)
    for method in Method:
        chosen = [i for i in range(n) if methods[i] == method]
        part = call.Mixed(rows[chosen], MixRecord(**{k: v[chosen] for k, v in vars(record).items()}), mixed.settings)
        expected = [reference.mix(*pairs[i], method, alpha=0.3, kl_budget=settings.kl_budget[i].item()) for i in chosen]
        check(part, [pairs[i] for i in chosen], expected, [names[i] for i in chosen], method)


STEPS, BEGIN = 8, 100
ENDS: dict[str, tuple[float, float]] = {
    "alpha": (0.9, 0.2),
    "alpha_min": (0.6, 0.7),
    "alpha_max": (0.4, 0.1),
    "kl_budget": (0.01, 0.5),
}


def scheduled_rows(positions: list[int], method: Method, **settings: float) -> tuple[call.Mixed, list[Pair]]:
    """One row of the same pair at each token position."""
    _, (pair,) = named_pairs("ordinary")
    n = len(positions)
    rows, theta = pair[0].repeat(n, 1), pair[1].repeat(n, 1)[:, None, :]
    asked, record = MixSettings.allocate(n, "cpu"), MixRecord.allocate(n, 1, "cpu")
    asked.first_position.zero_()
    asked.method.fill_(method)
    for name, value in settings.items():
        getattr(asked, name).fill_(value)
    slots, zeros = torch.arange(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
    mix_(rows, theta, slots, zeros, torch.tensor(positions), asked, record, MixScratch.allocate(n, VOCAB, "cpu"))
    return call.Mixed(rows, record, asked), [pair] * n


@pytest.mark.parametrize("name", ENDS)
def test_a_schedule_goes_in_a_straight_line_and_stays(name: str) -> None:
    start, end = ENDS[name]
    method = {"alpha": Method.FIXED, "kl_budget": Method.KL_BUDGET}.get(name, Method.KL_SYMMETRY)
    positions = [0, BEGIN - 1, BEGIN, BEGIN + 1, BEGIN + 4, BEGIN + STEPS - 1, BEGIN + STEPS, BEGIN + STEPS + 1, 2**40]
    schedule = {name: start, f"{name}_end": end, "schedule_position": BEGIN, "schedule_steps": STEPS}
    mixed, pairs = scheduled_rows(positions, method, **schedule)
    for i, position in enumerate(positions):
        value = start + (end - start) * min(max((position - BEGIN) / STEPS, 0), 1)
        wanted = reference.mix(*pairs[i], method, **{name: value})
        assert mixed.record.alpha[i, 0].item() == pytest.approx(wanted.alpha, abs=1e-4), position
        assert call.total_variation(mixed.rows[i], wanted.log_q) < tolerances.TOTAL_VARIATION, position
        same = reference.mix(*pairs[i], method, **schedule, token_position=position)
        assert same.alpha == pytest.approx(wanted.alpha, abs=1e-9)
    alpha = mixed.record.alpha[:, 0]
    assert alpha[0] == alpha[1] == alpha[2] != alpha[3]
    assert alpha[6] == alpha[7] == alpha[8] != alpha[5]
    if name != "kl_budget":
        for i, value in ((2, start), (6, end)):
            assert alpha[i].item() == pytest.approx(value, abs=1e-7)


def test_a_constant_is_exactly_itself_at_every_token() -> None:
    """0.1 + 0.0 * progress, whatever progress is; and a schedule that never begins."""
    positions = [BEGIN + i for i in range(12)]
    constant = {"alpha": 0.1, "alpha_end": 0.1, "schedule_position": BEGIN, "schedule_steps": 7}
    assert (scheduled_rows(positions, Method.FIXED, **constant)[0].record.alpha == torch.tensor(0.1)).all()
    never = {"alpha": 0.1, "alpha_end": 0.9, "schedule_position": NEVER}
    assert (scheduled_rows(positions, Method.FIXED, **never)[0].record.alpha == torch.tensor(0.1)).all()


@pytest.mark.parametrize(("start", "end"), [(INF, INF), (0.1, INF), (INF, 0.1)])
def test_a_budget_without_end_is_no_nan(start: float, end: float) -> None:
    positions = [BEGIN - 1, BEGIN, BEGIN + 3, BEGIN + STEPS, BEGIN + 99]
    schedule = {"kl_budget": start, "kl_budget_end": end, "schedule_position": BEGIN, "schedule_steps": STEPS}
    mixed, pairs = scheduled_rows(positions, Method.KL_BUDGET, **schedule)
    values = [start, start, INF, end, end]
    assert not mixed.record.fallback.any()
    for i, value in enumerate(values):
        wanted = reference.mix(*pairs[i], Method.KL_BUDGET, kl_budget=value)
        assert mixed.record.alpha[i, 0].item() == pytest.approx(wanted.alpha, abs=1e-4), positions[i]
        assert mixed.record.kind[i, 0] == Kind.GEOMETRIC
        assert reference.scheduled(start, end, positions[i], BEGIN, STEPS) == value
