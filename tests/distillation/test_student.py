"""Training treats every source alike, and the evaluation is transformers' own generation."""

from __future__ import annotations

import itertools

import measure  # found by the package `distillation`
import pytest
import task
import torch
from distillation import PAIR, problems, student
from distillation.protocol import EPOCHS, ROWS_PER_STEP, TEMPERATURES, Sizes
from distillation.student import Example
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PAIR / "theta")


@pytest.fixture(scope="module")
def held_out() -> list[dict]:
    return problems.held_out(3, 40)["stories"]


def worked_examples(tokenizer, count: int) -> list[Example]:
    stories = itertools.islice(task.problems("story", "train", 5), count)
    return [
        Example(
            measure.render(tokenizer, task.theta_messages(one.problem)),
            [*tokenizer.encode(one.solution, add_special_tokens=False), tokenizer.eos_token_id],
        )
        for one in stories
    ]


def test_every_row_once_an_epoch() -> None:
    rows = Sizes().rows
    examples = [Example([1], [i]) for i in range(rows)]
    for epochs in EPOCHS:
        stream = list(student.batches(examples, epochs, seed=3))
        assert len(stream) == epochs * rows // ROWS_PER_STEP
        assert all(len(batch) == ROWS_PER_STEP for batch in stream)
        each = [example.completion[0] for batch in stream for example in batch]
        passes = [each[i * rows : (i + 1) * rows] for i in range(epochs)]
        assert all(sorted(one) == list(range(rows)) for one in passes)
        assert passes[0] != passes[1]
    other = [Example([2], [i, i]) for i in range(rows)]
    ours, theirs = (list(student.batches(one, 1, seed=3)) for one in (examples, other))
    assert [e.completion[0] for b in ours for e in b] == [e.completion[0] for b in theirs for e in b]


def test_only_completions_are_learnt() -> None:
    tokens, labels = student.tensors([Example([5, 6, 7], [8, 9]), Example([5], [8])], pad=0)
    assert tokens.tolist() == [[5, 6, 7, 8, 9], [5, 8, 0, 0, 0]]
    assert labels.tolist() == [[-100, -100, -100, 8, 9], [-100, 8, -100, -100, -100]]


def test_a_step_in_parts_is_the_step(tokenizer) -> None:
    """The gradients of some examples at a time add up to the batch's, also where they are of different lengths."""
    batch = [*worked_examples(tokenizer, 4), Example([5, 6], [7])]
    found = {}
    for at_a_time in (5, 2):
        model = measure.load(PAIR / "theta")
        losses = list(student.backwards(model, batch, tokenizer.pad_token_id, at_a_time))
        found[at_a_time] = (sum(losses), [one.grad for one in model.parameters()])
        assert len(losses) == -(-len(batch) // at_a_time)
    assert found[2][0] == pytest.approx(found[5][0], abs=1e-5)
    for ours, theirs in zip(found[2][1], found[5][1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_learning_rate_rises_and_falls_to_zero() -> None:
    factors = [student.rate_at(step, 120) for step in range(121)]
    assert factors[0] == pytest.approx(1 / 12)
    assert factors[11] == factors[12] == 1
    assert factors[120] == 0
    assert all(earlier > later for earlier, later in itertools.pairwise(factors[12:]))


def test_training_learns_the_rows(tokenizer) -> None:
    """The rows themselves become likelier, which only happens where tokens and labels belong together."""
    examples = worked_examples(tokenizer, 60)

    def loss(model) -> float:
        with torch.inference_mode():
            scores = student.completion_logits(model, *student.tensors(examples, tokenizer.pad_token_id))
            return torch.nn.functional.cross_entropy(*scores).item()

    model = measure.load(PAIR / "theta")
    before = loss(model)
    last = student.train(model, examples, 8, 1e-3, 0, tokenizer.pad_token_id)
    assert loss(model) < 0.95 * before
    assert last < 0.97 * before
    again = measure.load(PAIR / "theta")
    assert student.train(again, examples, 8, 1e-3, 0, tokenizer.pad_token_id) == last


def test_greedy_evaluation_is_transformers_generation(tokenizer, held_out: list[dict]) -> None:
    """In batches that texts leave when they are finished, or one after another by `generate`."""
    model = measure.load(PAIR / "theta")
    asked = [*held_out[:8], *problems.held_out(3, 4)["sorting"]]
    texts = student.answers(model, tokenizer, asked)
    assert len({len(text) for text in texts}) > 4
    for text, problem in zip(texts, asked, strict=True):
        ids = torch.tensor([measure.render(tokenizer, task.theta_messages(problem["problem"]))])
        drawn = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=measure.MAX_TOKENS
        )
        assert text == tokenizer.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True)


def test_sampling_is_as_sharp_as_its_temperature(tokenizer, held_out: list[dict]) -> None:
    model = measure.load(PAIR / "theta")
    greedy = student.answers(model, tokenizer, held_out)
    assert student.answers(model, tokenizer, held_out, 1e-7, 1) == greedy
    assert student.answers(model, tokenizer, held_out, 1.0, 1) == student.answers(model, tokenizer, held_out, 1.0, 1)
    assert student.answers(model, tokenizer, held_out, 1.0, 1) != student.answers(model, tokenizer, held_out, 1.0, 2)


@pytest.mark.parametrize("sharper", [1.0, 1.25, 0.8])
def test_the_likeliest_temperature_undoes_sharpening(tokenizer, sharper: float) -> None:
    """Logits times a factor need that temperature more: what sampled accuracy owes to sharpness alone is taken out."""
    worked = problems.worked_validation(100)
    model = measure.load(PAIR / "theta")
    plain = student.likeliest_temperature(model, tokenizer, worked)
    assert TEMPERATURES[0] < plain < TEMPERATURES[-1]
    model.model.norm.weight.data *= sharper  # the last norm, so the logits
    assert student.likeliest_temperature(model, tokenizer, worked) == pytest.approx(plain * sharper, abs=0.051)


def test_right_and_sound_are_counted_apart() -> None:
    problem = problems.training(1, 1)[0]
    solution = next(task.problems("story", "train", problems.FIRST_SEED + 1)).solution
    lucky = f"It is not known. The answer is {problem['answer']}."
    assert student.judged([solution, lucky, "The answer is 1000."], [problem] * 3) == {"right": 2, "sound": 1}
