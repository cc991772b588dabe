"""What is drawn without an engine has the records and the texts that plain forwards of the same models give."""

from __future__ import annotations

import measure  # found by the package `real_model`
import pytest
import torch
from distillation.mixtures import mixed
from real_model import HERE, PROBLEMS, tasks
from real_model.drawer import Rule, Text
from real_model.grouped_attention import NAME, on_cpu
from real_model.lockstep import BATCH, Lockstep
from real_model.protocol import Sizes
from transformers import LlamaConfig, LlamaForCausalLM

PAIR = HERE.parent / "pair"
CLOSE = 2e-3
"""Nats a text, in float32: batches, padding and the cache change the order of sums."""
COUNT = BATCH + 6
GREEDY = Rule(alpha=0.0, temperature=0.0)


@pytest.fixture(scope="module")
def drawer() -> Lockstep:
    """The example pair before SmolLM2's tasks, of which it knows nothing; in float32."""
    made = Lockstep(PAIR / "teacher", PAIR / "theta", Sizes(max_tokens=30))
    for model in (made.teacher_model, made.own):
        model.float()
    return made


@pytest.fixture(scope="module")
def problems() -> list[tasks.Problem]:
    return tasks.read(PROBLEMS)


@torch.inference_mode()
def along(drawer: Lockstep, text: Text, problem: tasks.Problem) -> list[torch.Tensor]:
    """Theta's and the teacher's log-probabilities [tokens, vocabulary] along one text, of a forward each."""
    found = []
    for model, messages in (
        (drawer.theta_model, tasks.theta_messages(problem)),
        (drawer.teacher_model, tasks.shown_messages(problem)),
    ):
        ids = measure.render(drawer.tokenizer, messages) + text.token_ids
        rows = model(torch.tensor([ids])).logits[0, -len(text.token_ids) - 1 : -1]
        found.append(rows.double().log_softmax(-1))
    return found


@pytest.mark.parametrize(
    ("method", "alpha", "epsilon"),
    [("fixed", 0.0, None), ("fixed", 1.0, None), ("kl_symmetry", None, None), ("kl_budget", None, 0.1)],
)
def test_records_are_those_of_one_text_alone(
    drawer: Lockstep, problems: list[tasks.Problem], method: str, alpha: float | None, epsilon: float | None
) -> None:
    texts = drawer.texts(problems, range(COUNT), 4, Rule(method, alpha, epsilon=epsilon))
    assert [text.problem for text in texts] == list(range(COUNT))
    for text in texts[::7]:
        theta, teacher = along(drawer, text, problems[text.problem])
        q = mixed(method, theta, teacher, alpha, epsilon)
        assert len(text.kl) == len(text.alpha) == len(text.token_ids)
        picked = torch.tensor(text.token_ids)[:, None]
        assert text.theta_logprob == pytest.approx(float(theta.gather(1, picked).sum()), abs=CLOSE)
        assert text.kl == pytest.approx((q.log_q.exp() * (q.log_q - theta)).sum(-1).tolist(), abs=CLOSE)
        assert text.alpha == pytest.approx(q.alpha.tolist(), abs=CLOSE)


def test_heads_that_share_a_key_read_the_same() -> None:
    """By this attention or by transformers', with padding, over a prompt and six tokens, of a model with three heads a key."""
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(settings).eval()
    ids = torch.randint(0, 64, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0

    def logits() -> torch.Tensor:
        cache, found = None, []
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        for first, last in ((0, 6), *((place, place + 1) for place in range(6, 12))):
            output = model(
                ids[:, first:last], attention_mask=mask[:, :last], position_ids=positions[:, first:last],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            cache = output.past_key_values
            found.append(output.logits[:, -1])
        return torch.stack(found)

    with torch.inference_mode():
        theirs = logits()
        ours = logits() if on_cpu(model).config._attn_implementation == NAME else None
    assert ours is not None and theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    mask[0, :5] = 1
    with torch.inference_mode():
        assert (logits()[:, 0] - ours[:, 0]).abs().max() > 0.01, "the padding is not read"


def test_greedy_texts_are_the_likeliest_tokens(drawer: Lockstep, problems: list[tasks.Problem]) -> None:
    for text in drawer.texts(problems, range(3), 0, GREEDY):
        theta, _ = along(drawer, text, problems[text.problem])
        assert text.token_ids == theta.argmax(-1).tolist()


def test_each_alone_draws_from_itself(drawer: Lockstep, problems: list[tasks.Problem]) -> None:
    """By theta's log-probability the texts that it is asked for are likelier than the teacher's."""
    end = drawer.tokenizer.eos_token_id
    means = {}
    for who in ("theta", "teacher"):
        total = count = 0.0
        for words, problem in zip(drawer.alone(problems[:24], who, 1), problems, strict=False):
            ids = [*drawer.tokenizer.encode(words, add_special_tokens=False), end][: drawer.sizes.max_tokens]
            theta, _ = along(drawer, Text(0, ids, True, [], [], 0.0), problem)
            total, count = total + float(theta.gather(1, torch.tensor(ids)[:, None]).sum()), count + len(ids)
        means[who] = total / count
    assert means["theta"] > means["teacher"] + 0.5, means


def test_a_student_takes_thetas_place_and_leaves_it(drawer: Lockstep, problems: list[tasks.Problem]) -> None:
    own = drawer.texts(problems, range(4), 0, GREEDY)
    drawer.load(drawer.teacher_model)
    assert drawer.texts(problems, range(4), 0, GREEDY) != own
    drawer.load(None)
    assert drawer.texts(problems, range(4), 0, GREEDY) == own
