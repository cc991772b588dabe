"""Hostile requests against a live server, drawn by hypothesis, among good ones whose answers are known.

Each attempt says what has to become of it: refused with a reason that names what is wrong, answered, or (where a value is
arbitrary) either of the two. Whatever it is, the server gives no 5xx and no traceback, and lives on.

As a command it asks 10,000 times, in rounds that each have a seed of their own, and continues where it was interrupted:

    export PYTHONPATH=tests:examples/pair
    python tests/reliability/fuzz.py                     # state and result: tests/reliability/results/fuzz.json
    python tests/reliability/fuzz.py --replay 17         # the round with seed 17 alone, on a new server
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import string
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from questions import Question, make_questions, tokens_of
from record import Record
from small_server import MAX_MODEL_LEN, small_server

from vllm_optimal_sampling.alpha_methods import ALPHA_METHODS
from vllm_optimal_sampling.params import READERS

VOCAB_SIZE = 552
BLOCK = 32
ROUND = 500
LONGEST_REASON = 20_000
STOCK_FAULTS = {b'"structured_outputs"': "object has no attribute 'get'"}
"""What stock vLLM answers with 500 by itself, by the field that does it: a validator of vLLM's takes the field for an object
whatever it is. The request ends there, before anything of this package is asked; it is counted apart."""

Expected = Literal["refused", "answered", "either"]


@dataclass(frozen=True)
class Attempt:
    """One request, as bytes, and what has to become of it.

    Attributes:
        kind: which strategy it is from, for the counts.
        path: the route.
        body: what is posted.
        expected: whether it is bad, good, or may be either.
        reason: a regular expression that a refusal's message has to match.
    """

    kind: str
    path: str
    body: bytes = field(repr=False)
    expected: Expected
    reason: str = ""

    def __repr__(self) -> str:
        body = self.body if len(self.body) < 600 else self.body[:300] + b" ... " + self.body[-300:]
        return (
            f"{self.kind}: POST {self.path} {body!r} ({len(self.body)} bytes) expects {self.expected} {self.reason!r}"
        )


# What a request can have


def _body(path: str, **options: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = (
        {"messages": [{"role": "user", "content": "x"}]} if path.endswith("chat/completions") else {"prompt": "x"}
    )
    return {"model": "teacher", "max_tokens": 1, "temperature": 0, **prompt, **options}


paths = st.sampled_from(["/v1/completions", "/v1/chat/completions"])
texts = st.text(st.characters(codec=None), max_size=40)  # NULs and halves of surrogate pairs too
ints = st.one_of(st.integers(), st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400]))
floats = st.one_of(st.floats(), st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, -0.0]))
scalars = st.one_of(texts, ints, floats)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), scalars),
    lambda children: st.one_of(st.lists(children, max_size=4), st.dictionaries(texts, children, max_size=4)),
    max_leaves=12,
)
outside_unit = floats.filter(lambda x: not 0 <= x <= 1)
below_zero = st.integers(max_value=-1)
too_large = st.integers(min_value=2**31)
no_number = st.one_of(texts, st.lists(scalars, max_size=3), st.none(), st.dictionaries(texts, scalars, max_size=2))
no_bool = st.one_of(texts, ints.filter(lambda x: x not in (0, 1)), floats.filter(lambda x: x not in (0, 1)), no_number)
fractions = floats.filter(lambda x: x != x or abs(x) == float("inf") or x != int(x))
deep = st.integers(20, 3000)
sizes = st.one_of(st.integers(0, 300), st.sampled_from([4096, 4097, 65_536, 1_000_000, 10_000_000]))

BAD_VALUES: dict[str, st.SearchStrategy] = {
    "optimal_sampling": no_bool,
    "return_alpha": no_bool,
    "alpha": st.one_of(outside_unit, no_number, ints.filter(lambda x: x not in (0, 1))),
    "alpha_min": st.one_of(outside_unit, no_number),
    "alpha_max": st.one_of(outside_unit, no_number),
    "support_top_p": st.one_of(outside_unit, st.just(0), st.just(0.0), texts, st.lists(scalars, max_size=3)),
    "support_top_k": st.one_of(st.integers(max_value=0), too_large, fractions, texts, st.lists(scalars, max_size=3)),
    "teacher_only_tokens": st.one_of(below_zero, too_large, fractions, no_number),
    "max_js_divergence": st.one_of(
        floats.filter(lambda x: not 0 <= x < float("inf")), texts, st.lists(scalars, max_size=3)
    ),
    "kl_budget": st.one_of(floats.filter(lambda x: not 0 < x < float("inf")), no_number),
    "js_sensitivity": st.one_of(floats.filter(lambda x: not 0 < x < float("inf")), no_number),
    "alpha_steps": st.one_of(st.integers(max_value=0), too_large, fractions, no_number),
    "alpha_method": st.one_of(scalars, st.lists(scalars, max_size=3), st.none()).filter(
        lambda x: x not in ALPHA_METHODS
    ),
    "theta_prompt": st.one_of(
        st.just(""), ints, floats, st.lists(scalars, max_size=3), texts.map(lambda text: text + "\ud800")
    ),
    "theta_messages": st.one_of(
        ints,
        floats,
        st.lists(json_values, max_size=3),
        # Text that is no JSON, is no list of messages, has no role, or is too deep.
        texts,
        json_values.map(json.dumps),
        st.lists(st.fixed_dictionaries({"content": json_values}), max_size=2).map(json.dumps),
        deep.map(lambda depth: "[" * depth + "]" * depth),
        deep.map(lambda depth: '[{"role": "user", "content": ' + '{"a":' * depth + "1" + "}" * depth + "}]"),
        st.just('[{"role": "user", "content": "\\ud800"}]'),
    ),
    "theta_chat_template_kwargs": st.one_of(
        ints,
        floats,
        st.lists(json_values, max_size=3),
        st.dictionaries(texts, json_values, max_size=2),
        # Text that is no JSON, is no object, or is one for a request without theta's chat.
        texts,
        json_values.map(json.dumps),
        deep.map(lambda depth: '{"a":' * depth + "1" + "}" * depth),
        st.just('{"a": "\\ud800"}'),
    ).filter(lambda x: not isinstance(x, str) or x.strip() != "{}"),
    "theta_prompt_token_ids": st.one_of(
        ints,
        floats,
        texts,
        st.just([]),
        st.lists(st.one_of(below_zero, st.integers(min_value=VOCAB_SIZE), fractions, texts), min_size=1, max_size=8),
        st.builds(
            lambda length, place, token: [5] * place + [token] + [5] * (length - place),
            st.integers(1, 200),
            st.integers(0, 200),
            st.one_of(below_zero, st.integers(min_value=VOCAB_SIZE), st.none(), st.just([5])),
        ),
    ),
}
"""Of each argument, values that are always refused."""


def _xargs(kind: str, path: str, arguments: Any, expected: Expected, reason: str = "", **options: Any) -> Attempt:
    body = json.dumps(_body(path, vllm_xargs=arguments, **options)).encode()
    return Attempt(kind, path, body, expected, reason)


@st.composite
def bad_arguments(draw: st.DrawFn) -> Attempt:
    name = draw(st.sampled_from(sorted(BAD_VALUES)))
    return _xargs(name, draw(paths), {name: draw(BAD_VALUES[name])}, "refused", f"{name}|extra_args integers")


@st.composite
def unknown_keys(draw: st.DrawFn) -> Attempt:
    key = draw(st.text(string.ascii_letters + "_. /\\\0é", min_size=1, max_size=60)) + "?"
    return _xargs(
        "unknown key", draw(paths), {key: draw(scalars)}, "refused", "not an argument|vllm_xargs|extra_args integers"
    )


@st.composite
def contradictions(draw: st.DrawFn) -> Attempt:
    arguments, reason = draw(
        st.sampled_from(
            [
                ({"theta_prompt": "x", "theta_prompt_token_ids": [5]}, "both theta's prompt"),
                ({"theta_prompt": "x", "theta_messages": '[{"role": "user", "content": "x"}]'}, "both theta's prompt"),
                ({"theta_prompt": "x", "theta_chat_template_kwargs": '{"a": 1}'}, "goes through no chat template"),
                (
                    {
                        "theta_messages": '[{"role": "user", "content": "x"}]',
                        "theta_chat_template_kwargs": '{"padding": "max_length", "max_length": 1000000000}',
                    },
                    "has max_length, padding, which is no variable of a template",
                ),
                ({"alpha_min": 0.75, "alpha_max": 0.25}, "alpha_min=0.75 is above alpha_max=0.25"),
                ({"optimal_sampling": False, "alpha": 0.25}, "alpha=0.25 has no meaning"),
                ({"optimal_sampling": False, "theta_prompt": "x"}, "theta_prompt='x' has no meaning"),
            ]
        )
    )
    return _xargs("contradiction", draw(paths), arguments, "refused", reason)


@st.composite
def lengths(draw: st.DrawFn) -> Attempt:
    """Prompts of both models around the blocks' and the models' limits; in the last places there is room for a token."""
    near = [multiple + shift for multiple in range(0, MAX_MODEL_LEN + 1, BLOCK) for shift in (-1, 0, 1)]
    length = st.sampled_from([n for n in near if n > 0] + [MAX_MODEL_LEN - 2, 2 * MAX_MODEL_LEN, 4097])
    teacher_len, theta_len = draw(length), draw(length)
    max_tokens = draw(st.sampled_from([1, 1, 1, 2]))
    body = _body("/v1/completions", prompt=[7 + i % 400 for i in range(teacher_len)], max_tokens=max_tokens)
    body["vllm_xargs"] = {"theta_prompt_token_ids": [11 + i % 300 for i in range(theta_len)]}
    # vLLM cuts max_tokens to what the teacher's prompt leaves, and all that it leaves counts as left open for theta's.
    room = MAX_MODEL_LEN - teacher_len
    fits = room > 0 and theta_len < MAX_MODEL_LEN
    fits = fits and (theta_len + min(max_tokens, room) <= MAX_MODEL_LEN or max_tokens == room)
    reason = "theta_prompt_token_ids|max_tokens|maximum context length|maximum model length|context"
    return Attempt(
        "lengths",
        "/v1/completions",
        json.dumps(body).encode(),
        "answered" if fits else "refused",
        "" if fits else reason,
    )


@st.composite
def long_arguments(draw: st.DrawFn) -> Attempt:
    """Up to 10 MB of text, of a chat, of token ids, of a key, of a list that has no business here."""
    size = draw(sizes)
    kind = draw(st.sampled_from(["text", "chat", "variables", "escapes", "ids", "key", "list", "bad list", "digits"]))
    given: dict[str, Any] = {
        "text": lambda: {"theta_prompt": "x " * (size // 2)},
        "chat": lambda: {"theta_messages": json.dumps([{"role": "user", "content": "y" * size}])},
        "variables": lambda: {
            "theta_messages": '[{"role": "user", "content": "x"}]',
            "theta_chat_template_kwargs": json.dumps({"z": "z" * size}),
        },
        "escapes": lambda: {"theta_messages": '[{"role": "user", "content": "' + "\\u0041" * (size // 6) + '"}]'},
        "ids": lambda: {"theta_prompt_token_ids": [5] * (size // 3)},
        "key": lambda: {"k" * size + "?": 1},
        "list": lambda: {"alpha": [0.5] * (size // 5)},
        "bad list": lambda: {"theta_prompt_token_ids": [None] * (size // 100)},
        "digits": lambda: {"alpha": 10 ** min(size, 4000)},
    }[kind]()
    expected: Expected = "refused" if size > 300 * BLOCK else "either"
    return _xargs(f"long {kind}", draw(paths), given, expected)


@st.composite
def raw_bodies(draw: st.DrawFn) -> Attempt:
    """Bytes that are no JSON object, or one cut off, spoilt, nested, or with numbers that JSON does not have."""
    path = draw(paths)
    good = json.dumps(_body(path, vllm_xargs={"alpha": 0.125})).encode()
    cut = st.integers(0, len(good) - 1).map(lambda end: good[:end])
    spoilt = st.tuples(st.integers(0, len(good) - 1), st.sampled_from([b"\xff", b"\x80", b"\0"])).map(
        lambda at: good[: at[0]] + at[1] + good[at[0] :]
    )
    nested = st.integers(100, 200_000).map(lambda depth: good.replace(b"0.125", b"[" * depth + b"]" * depth))
    numbers = st.sampled_from([b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"0x1", b"1" * 5000]).map(
        lambda number: good.replace(b"0.125", number)
    )
    others = st.one_of(
        st.binary(max_size=50).filter(lambda raw: raw[:1] != b"{"),
        json_values.filter(lambda x: not isinstance(x, dict)).map(lambda x: json.dumps(x).encode()),
    )
    return Attempt("raw body", path, draw(st.one_of(cut, spoilt, nested, numbers, others)), "refused")


FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "logit_bias", "logprobs", "echo", "user", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "stop_token_ids", "bad_words", "ignore_eos"),
    *("allowed_token_ids", "response_format", "structured_outputs", "truncate_prompt_tokens", "priority", "request_id"),
    *("prompt_logprobs", "include_stop_str_in_output", "skip_special_tokens", "stream_options", "return_token_ids"),
    *(
        "tools",
        "tool_choice",
        "chat_template",
        "chat_template_kwargs",
        "documents",
        "logits_processors",
        "model",
        "prompt",
    ),
    *("messages", "vllm_xargs", "kv_transfer_params", "cache_salt", "add_special_tokens", "prompt_embeds", "suffix"),
)
"""Of vLLM's own, without those that ask for many tokens or many samples."""


@st.composite
def anything(draw: st.DrawFn) -> Attempt:
    """Arbitrary JSON in vLLM's own fields, beside arbitrary arguments of ours."""
    path = draw(paths)
    body = _body(path)
    for name in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True)):
        body[name] = draw(json_values)
    if draw(st.booleans()):
        body["vllm_xargs"] = draw(st.dictionaries(st.one_of(texts, st.sampled_from(sorted(BAD_VALUES))), json_values))
    return Attempt("anything", path, json.dumps(body).encode(), "either")


@st.composite
def sound(draw: st.DrawFn) -> Attempt:
    """Arguments that are all in range, in any combination: answered."""
    unit = st.floats(0, 1)
    low, high = sorted(draw(st.tuples(unit, unit)))
    arguments: dict[str, Any] = {
        "alpha_method": draw(st.sampled_from(ALPHA_METHODS)),
        "alpha": draw(unit),
        "kl_budget": draw(st.floats(0, 1e300, exclude_min=True)),
        "js_sensitivity": draw(st.floats(0, 1e300, exclude_min=True)),
        "alpha_min": low,
        "alpha_max": high,
        "support_top_k": draw(st.integers(1, 2**31 - 1)),
        "support_top_p": draw(st.floats(0, 1, exclude_min=True)),
        "teacher_only_tokens": draw(st.integers(0, 2**31 - 1)),
        "max_js_divergence": draw(st.floats(0, 1e300)),
        "return_alpha": draw(st.booleans()),
    }
    kept = draw(st.sets(st.sampled_from(sorted(arguments))))
    chat = {
        "theta_messages": '[{"role": "user", "content": "x"}]',
        "theta_chat_template_kwargs": '{"a": {"b": [null]}}',
    }
    prompts = [{}, {"theta_prompt": "x\0 \U0001f600"}, {"theta_prompt_token_ids": [VOCAB_SIZE - 1, 0]}, chat]
    prompt = draw(st.sampled_from(prompts))
    method = arguments["alpha_method"] if "alpha_method" in kept else "kl_symmetry"
    kept -= {name for name, readers in READERS.items() if method not in readers}  # refused where it has no effect
    kept |= {"kl_budget"} if method == "kl_budget" else set()
    chosen = {name: arguments[name] for name in kept} | prompt
    return _xargs("sound", draw(paths), chosen, "answered", temperature=draw(st.sampled_from([0, 1])))


_kinds = (
    [bad_arguments()] * 10
    + [unknown_keys(), contradictions(), raw_bodies(), raw_bodies(), lengths(), long_arguments(), sound()]
    + [anything()] * 3
)
# Not `one_of`, which would take each kind once.
attempts: st.SearchStrategy[Attempt] = st.sampled_from(_kinds).flatmap(lambda kind: kind)


# Asking and judging


def judge(attempt: Attempt, status: int, answer: Any) -> None:
    """Whether a response is what the attempt has to get.

    Raises:
        AssertionError: it is not, with both.
    """
    said = answer if isinstance(answer, str) else json.dumps(answer)
    where = f"{status} {said[:1000]}\n{attempt!r}"
    if attempt.expected == "answered":
        assert status == 200, where
    elif attempt.expected == "refused":
        assert 400 <= status < 500, where
    if status == 500 and any(field in attempt.body and fault in said for field, fault in STOCK_FAULTS.items()):
        return
    assert status == 200 or 400 <= status < 500, where
    if status == 200:
        return
    message = answer["error"]["message"] if isinstance(answer, dict) and "error" in answer else said
    assert isinstance(message, str) and message.strip(), where
    assert "Traceback" not in message and 'File "' not in message, where
    assert len(said) <= LONGEST_REASON, f"the reason has {len(said)} characters: {where}"
    assert re.search(attempt.reason, message), where


class Neighbour:
    """Asks good questions over and over, one at a time, while it is entered, and keeps the wrong answers."""

    def __init__(self, server: Any, questions: Sequence[Question]):
        self.server, self.questions = server, questions
        self.right, self.wrong = 0, list[str]()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        number = 0
        while not self._done.is_set():
            question = self.questions[number % len(self.questions)]
            number += 1
            try:
                status, answer = self.server.send(question.path, question.body)
                found = tokens_of(answer) if status == 200 else f"{status} {answer}"
            except Exception as error:
                found = repr(error)
            if found == list(question.answer):
                self.right += 1
            else:
                self.wrong.append(f"{question} got {found}")

    @contextmanager
    def asking(self) -> Iterator[Neighbour]:
        self._thread.start()
        try:
            yield self
        finally:
            self._done.set()
            self._thread.join(240)


def attack(server: Any, examples: int, round_seed: int, counts: Counter) -> None:
    """One round: so many attempts; a failing one is shrunk, and shown with what it takes to replay it.

    Raises:
        AssertionError: a response was not what its attempt has to get; `__notes__` has the least attempt that fails.
    """

    @seed(round_seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    @given(attempts)
    def one(attempt: Attempt) -> None:
        status, answer = server.send(attempt.path, attempt.body)
        counts["requests"] += 1
        counts[f"{attempt.expected}: {status}"] += 1
        counts[f"of {attempt.kind}"] += 1
        judge(attempt, status, answer)

    one()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="how many in all, at least")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "fuzz.json")
    parser.add_argument("--fresh", action="store_true", help="forget the rounds that were done")
    parser.add_argument("--replay", type=int, help="run the round with this seed alone, and record nothing")
    options = parser.parse_args()
    record = Record(options.output, fresh=options.fresh)
    rounds: list[dict[str, Any]] = record.data.setdefault("rounds", [])
    seeds: Iterator[int] = iter([options.replay]) if options.replay is not None else itertools.count()
    failed = False
    with TemporaryDirectory() as folder, small_server(Path(folder) / "server.log") as server:
        questions = make_questions(12, max_tokens=8)
        for round_seed in seeds:
            if options.replay is None and any(done["seed"] == round_seed for done in rounds):
                continue
            if options.replay is None and sum(done["requests"] for done in rounds) >= options.requests:
                break
            counts: Counter = Counter()
            start = time.monotonic()
            failure = None
            with Neighbour(server, questions).asking() as neighbour:
                try:
                    attack(server, ROUND, round_seed, counts)
                except Exception as error:
                    failure = "\n".join([str(error), *getattr(error, "__notes__", [])])[:6000]
            outcome = {
                "seed": round_seed,
                "seconds": round(time.monotonic() - start, 1),
                "good answers right": neighbour.right,
                "good answers wrong": neighbour.wrong,
                "engine alive": server.is_alive(),
                "failure": failure,
                **dict(sorted(counts.items())),
            }
            print(json.dumps({k: v for k, v in outcome.items() if not k.startswith("of ")}), flush=True)
            failed |= bool(failure or neighbour.wrong or not outcome["engine alive"])
            if options.replay is None:
                rounds.append(outcome)
                totals: Counter = Counter()
                for done in rounds:
                    totals.update({k: v for k, v in done.items() if isinstance(v, int) and k != "seed"})
                record.data["totals"] = dict(sorted(totals.items()))
                record.save()
            if not outcome["engine alive"]:
                break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
