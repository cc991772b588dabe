"""The request arguments: every refusal in its own words, and nothing lost between a client and the engine."""

import doctest
import json
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_optimal_sampling import params as params_module
from vllm_optimal_sampling.chat_messages import parse_messages
from vllm_optimal_sampling.params import (
    ALPHA_METHODS,
    ARGUMENTS,
    READERS,
    SCHEDULED,
    ArgumentError,
    OptimalSamplingParams,
)

CHAT = [{"role": "user", "content": "2 + 2"}]
WANTED = 'give a list of messages such as [{"role": "user", "content": "..."}]'

REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    # types, strictly
    ({"alpha": "0.5"}, "alpha", "alpha='0.5' is text, not a number; send it without quotes (0.5)"),
    ({"alpha": True}, "alpha", "alpha=True is a bool, not a number"),
    ({"alpha": [0.5]}, "alpha", "alpha=[0.5] has 1 entry; give one number, or a pair [start, end]"),
    ({"alpha_min": []}, "alpha_min", "alpha_min=[] has 0 entries; give one number, or a pair [start, end]"),
    (
        {"kl_budget": [1, 2, 3]},
        "kl_budget",
        "kl_budget=[1, 2, 3] has 3 entries; give one number, or a pair [start, end]",
    ),
    ({"alpha_max": [1, "0"]}, "alpha_max", "alpha_max[1]='0' is text, not a number; send it without quotes (0)"),
    ({"alpha_max": [True, 1]}, "alpha_max", "alpha_max[0]=True is a bool, not a number"),
    ({"alpha_steps": 2.0}, "alpha_steps", "alpha_steps=2.0 is a float, not a whole number"),
    ({"js_sensitivity": [1, 2]}, "js_sensitivity", "js_sensitivity=[1, 2] is a list, not a number"),
    ({"alpha_max": 1j}, "alpha_max", "alpha_max=1j is a complex, not a number"),
    ({"support_top_k": 20.0}, "support_top_k", "support_top_k=20.0 is a float, not a whole number"),
    (
        {"support_top_k": "20"},
        "support_top_k",
        "support_top_k='20' is text, not a whole number; send it without quotes (20)",
    ),
    ({"teacher_only_tokens": True}, "teacher_only_tokens", "teacher_only_tokens=True is a bool, not a whole number"),
    ({"teacher_only_tokens": None}, "teacher_only_tokens", "teacher_only_tokens=None is null, not a whole number"),
    (
        {"return_alpha": "true"},
        "return_alpha",
        "return_alpha='true' is text, not true or false; send it without quotes (true)",
    ),
    ({"return_alpha": 1}, "return_alpha", "return_alpha=1 is an integer, not true or false"),
    ({"optimal_sampling": None}, "optimal_sampling", "optimal_sampling=None is null, not true or false"),
    ({"theta_prompt": 7}, "theta_prompt", "theta_prompt=7 is an integer, not text"),
    ({"theta_prompt": b"a"}, "theta_prompt", "theta_prompt=b'a' is bytes, not text"),
    (
        {"theta_prompt_token_ids": 7},
        "theta_prompt_token_ids",
        "theta_prompt_token_ids=7 is an integer, not a list of token ids",
    ),
    (
        {"theta_prompt_token_ids": "7"},
        "theta_prompt_token_ids",
        "theta_prompt_token_ids='7' is text, not a list of token ids",
    ),
    (
        {"theta_prompt_token_ids": [1, 2.0]},
        "theta_prompt_token_ids",
        "theta_prompt_token_ids[1]=2.0 is a float, not a whole number",
    ),
    (
        {"theta_prompt_token_ids": [1, "2"]},
        "theta_prompt_token_ids",
        "theta_prompt_token_ids[1]='2' is text, not a whole number; send it without quotes (2)",
    ),
    (
        {"theta_prompt_token_ids": [False]},
        "theta_prompt_token_ids",
        "theta_prompt_token_ids[0]=False is a bool, not a whole number",
    ),
    # methods with an argument of their own, and schedules
    (
        {"alpha_method": "kl_budget"},
        "kl_budget",
        "alpha_method='kl_budget' needs kl_budget, in nats: how far q* may be from theta at a token, such as 0.05",
    ),
    *(
        (
            {"alpha_method": "kl_budget", "kl_budget": budget},
            "kl_budget",
            f"kl_budget={shown} is not above 0; give nats, how far q* may be from theta at a token (alpha_method='fixed' "
            "with alpha=0 draws from theta alone)",
        )
        for budget, shown in ((0, "0.0"), (-1, "-1.0"), ([-0.1, 1], "[-0.1, 1.0]"), ([0, 0], "[0.0, 0.0]"))
    ),
    (
        {"alpha_method": "kl_budget", "kl_budget": math.nan},
        "kl_budget",
        "kl_budget=nan is not a finite number; give an ordinary one",
    ),
    (
        {"kl_budget": 0.1},
        "kl_budget",
        "kl_budget=0.1 has no effect with alpha_method='kl_symmetry'; ask for alpha_method='kl_budget', or drop it",
    ),
    (
        {"alpha_method": "entropy", "js_sensitivity": 10},
        "js_sensitivity",
        "js_sensitivity=10.0 has no effect with alpha_method='entropy'; ask for alpha_method='js_gate', or drop it",
    ),
    (
        {"alpha_method": "js_gate", "js_sensitivity": 0},
        "js_sensitivity",
        "js_sensitivity=0.0 is not above 0; the larger, the less two models may disagree before alpha falls to alpha_min "
        "(50 is the default)",
    ),
    (
        {"alpha_max": [1, 0.5]},
        "alpha_steps",
        "alpha_max=[1.0, 0.5] goes from one value to another; give alpha_steps, the number of tokens that this takes",
    ),
    (
        {"alpha_steps": 8},
        "alpha_steps",
        "alpha_steps=8 has no effect: none of alpha, alpha_min, alpha_max, kl_budget is a pair [start, end]; give one, or "
        "drop it",
    ),
    (
        {"alpha_max": [1, 0.5], "alpha_steps": 0},
        "alpha_steps",
        "alpha_steps=0 is outside [1, 2147483647]; it is the number of tokens a pair takes",
    ),
    (
        {"alpha_min": [0, 0.6], "alpha_max": 0.5, "alpha_steps": 8},
        "alpha_min",
        "alpha_min=[0.0, 0.6] is above alpha_max=0.5; swap them or drop one",
    ),
    (
        {"alpha_min": [0, 1.5], "alpha_steps": 8},
        "alpha_min",
        "alpha_min=[0.0, 1.5] is outside [0, 1]; 0 is theta alone, 1 is the teacher alone",
    ),
    # numbers
    ({"alpha": math.nan}, "alpha", "alpha=nan is not a finite number; give an ordinary one"),
    (
        {"max_js_divergence": math.inf},
        "max_js_divergence",
        "max_js_divergence=inf is not a finite number; give an ordinary one",
    ),
    ({"alpha": 1.5}, "alpha", "alpha=1.5 is outside [0, 1]; 0 is theta alone, 1 is the teacher alone"),
    ({"alpha_min": -0.1}, "alpha_min", "alpha_min=-0.1 is outside [0, 1]; 0 is theta alone, 1 is the teacher alone"),
    ({"alpha_min": 0.9, "alpha_max": 0.5}, "alpha_min", "alpha_min=0.9 is above alpha_max=0.5; swap them or drop one"),
    ({"return_top_k": -1}, "return_top_k", "return_top_k=-1 is outside [0, 128]; 0 returns none"),
    ({"return_top_k": 129}, "return_top_k", "return_top_k=129 is outside [0, 128]; 0 returns none"),
    (
        {"return_top_k": 5},
        "return_top_k",
        "return_top_k=5 adds to the per-token record, and return_alpha=False returns none; ask for return_alpha=True",
    ),
    (
        {"support_top_k": 0},
        "support_top_k",
        "support_top_k=0 is outside [1, 2147483647]; leave it out to mix over all tokens",
    ),
    (
        {"support_top_k": 2**31},
        "support_top_k",
        "support_top_k=2147483648 is outside [1, 2147483647]; leave it out to mix over all tokens",
    ),
    (
        {"support_top_p": 0.0},
        "support_top_p",
        "support_top_p=0.0 is outside (0, 1]; it is the mass of the teacher's nucleus, leave it out to mix over all "
        "tokens",
    ),
    (
        {"teacher_only_tokens": -1},
        "teacher_only_tokens",
        "teacher_only_tokens=-1 is outside [0, 2147483647]; 0 mixes from the first token on",
    ),
    (
        {"max_js_divergence": -1},
        "max_js_divergence",
        "max_js_divergence=-1.0 is negative; give nats, at least 0 (two models are at most ln 2 = 0.693 apart), or "
        "leave it out",
    ),
    (
        {"alpha_method": "KL_symetry"},
        "alpha_method",
        "alpha_method='KL_symetry' is not one of kl_symmetry, fixed, entropy, ess_balance, reverse_kl_symmetry, "
        "arithmetic, kl_budget, js_gate: did you mean kl_symmetry?",
    ),
    (
        {"alpha_method": 3},
        "alpha_method",
        "alpha_method=3 is not one of kl_symmetry, fixed, entropy, ess_balance, reverse_kl_symmetry, arithmetic, kl_budget, "
        "js_gate",
    ),
    # theta's prompt
    (
        {"theta_prompt": "a", "theta_prompt_token_ids": [1]},
        "theta_prompt_token_ids",
        "theta_prompt and theta_prompt_token_ids are both theta's prompt; give one of them",
    ),
    (
        {"theta_prompt": "a", "theta_messages": CHAT},
        "theta_messages",
        "theta_prompt and theta_messages are both theta's prompt; give one of them",
    ),
    (
        {"theta_prompt": ""},
        "theta_prompt",
        "theta_prompt is empty; give theta at least one token, or leave it out for the teacher's prompt",
    ),
    (
        {"theta_prompt": "a\ud800"},
        "theta_prompt",
        "theta_prompt has half a surrogate pair (U+D800) at character 1; send valid Unicode text",
    ),
    (
        {"theta_prompt_token_ids": []},
        "theta_prompt_token_ids",
        "theta_prompt_token_ids is empty; give at least one token, or leave it out for the teacher's prompt",
    ),
    (
        {"theta_prompt_token_ids": [3, -1]},
        "theta_prompt_token_ids",
        "theta_prompt_token_ids[1]=-1 is not a token id; ids run from 0 to below the vocabulary size",
    ),
    # theta's chat
    (
        {"theta_messages": "["},
        "theta_messages",
        f"theta_messages='[' is not JSON (Expecting value: line 1 column 2 (char 1)); {WANTED}",
    ),
    (
        {"theta_messages": "[NaN]"},
        "theta_messages",
        f"theta_messages='[NaN]' is not JSON (NaN is not a JSON value); {WANTED}",
    ),
    ({"theta_messages": '{"role": "user"}'}, "theta_messages", f"theta_messages is an object, not a list; {WANTED}"),
    ({"theta_messages": []}, "theta_messages", f"theta_messages is empty; {WANTED}, or leave it out"),
    ({"theta_messages": ["hi"]}, "theta_messages", f"theta_messages[0] is text, not a message; {WANTED}"),
    (
        {"theta_messages": {"role": "user"}},
        "theta_messages",
        "theta_messages={'role': 'user'} is an object, not a list of messages or that list as JSON text",
    ),
    (
        {"theta_messages": [{"content": "hi"}]},
        "theta_messages",
        "theta_messages[0] has role None; give a name such as 'user'",
    ),
    (
        {"theta_messages": [*CHAT, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "theta_messages",
        "theta_messages[1] has content [{'image_url': {...}, 'type': 'image_url'}]; give text, or a list of parts such "
        'as {"type": "text", "text": "..."} (theta reads text only)',
    ),
    (
        {"theta_messages": "[" * 40 + "]" * 40},
        "theta_messages",
        "theta_messages is nested more than 16 levels deep; flatten it",
    ),
    (
        {"theta_messages": "[" * 10**6},
        "theta_messages",
        "theta_messages is nested more than 16 levels deep; flatten it",
    ),
    (
        {"theta_messages": r'[{"role": "user", "content": "\ud800"}]'},
        "theta_messages",
        "theta_messages has half a surrogate pair (U+D800) at character 30; send valid Unicode text",
    ),
    (
        {"theta_messages": [{"role": "user", "content": "a", "name": {1}}]},
        "theta_messages",
        "theta_messages cannot be written as JSON (Object of type set is not JSON serializable)",
    ),
    # no effect
    (
        {"alpha": 0.7},
        "alpha",
        "alpha=0.7 has no effect with alpha_method='kl_symmetry', which finds alpha for each token; ask for "
        "alpha_method='fixed' or 'arithmetic', or drop it",
    ),
    (
        {"alpha": 0, "alpha_method": "entropy"},
        "alpha",
        "alpha=0.0 has no effect with alpha_method='entropy', which finds alpha for each token; ask for "
        "alpha_method='fixed' or 'arithmetic', or drop it",
    ),
    # opting out
    (
        {"optimal_sampling": False, "alpha": 0.3},
        "alpha",
        "alpha=0.3 has no meaning with optimal_sampling=False, which draws from the teacher alone; drop it, or ask for "
        "optimal_sampling=True",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "argument", "sentence"),
    REFUSALS,
    ids=[f"{argument}-{n}" for n, (_, argument, _) in enumerate(REFUSALS)],
)
def test_refusals(arguments: dict[str, Any], argument: str, sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        OptimalSamplingParams(**arguments)
    assert str(caught.value) == sentence
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("extra_args", "sentence"),
    [
        ({"theta_promt": "a"}, "theta_promt is not an argument of optimal sampling: did you mean theta_prompt?"),
        ({"Alpha-Min": 0.1}, "Alpha-Min is not an argument of optimal sampling: did you mean alpha_min?"),
        ({"alpha": None}, "alpha=None is not a value; leave it out for the default"),
        ({"alpha": 2}, "alpha=2.0 is outside [0, 1]; 0 is theta alone, 1 is the teacher alone"),
        ({"return_alpha": 2}, "return_alpha=2 is an integer, not true or false"),
        (  # the default's value, and yet it was given
            {"alpha": 0.5},
            "alpha=0.5 has no effect with alpha_method='kl_symmetry', which finds alpha for each token; ask for "
            "alpha_method='fixed' or 'arithmetic', or drop it",
        ),
    ],
)
def test_refusals_of_extra_args(extra_args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        OptimalSamplingParams.from_extra_args(extra_args)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("key", ["temperature_schedule", "x" * 10_000, 7], ids=["word", "long", "number"])
def test_an_unknown_key_is_refused_with_what_is_known_and_how_to_admit_it(key: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        OptimalSamplingParams.from_extra_args({key: 1})
    message = str(caught.value)
    assert all(name in message for name in ARGUMENTS)
    assert '{"optimal_sampling": {"other_extra_args": ["..."]}}' in message
    assert len(message) < 600


def test_keys_of_vllm_and_of_declared_plugins_are_left_alone() -> None:
    extra_args = {"kv_transfer_params": {"a": 1}, "session_id": "s", "kv_cache_report_mode": "full", "alpha_mim": 1}
    assert OptimalSamplingParams.from_extra_args(extra_args, others=["alpha_mim"]) == OptimalSamplingParams()


LARGE: dict[str, Any] = {
    "text": "x" * 10**6,
    "list": [1.5] * 10**6,
    "object": {"a": "x" * 10**6},
    "integer": 10**6000,
    "nested": [[[[[["x"]]]]]],
    "bytes": b"x" * 10**6,
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("name", sorted(ARGUMENTS - {"theta_prompt"}))
def test_a_refused_value_is_abbreviated(name: str, kind: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        OptimalSamplingParams(**{name: LARGE[kind]})
    assert len(str(caught.value)) < 400


def test_errors_survive_being_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(ArgumentError("alpha", "alpha=2 is outside [0, 1]")))
    assert (error.argument, str(error)) == ("alpha", "alpha=2 is outside [0, 1]")


def test_numpy_numbers_are_numbers() -> None:
    arguments = OptimalSamplingParams(
        alpha_max=np.float32(0.25), support_top_k=np.int64(5), theta_prompt_token_ids=list(np.arange(3))
    ).to_extra_args()
    assert json.dumps(arguments) == '{"theta_prompt_token_ids": [0, 1, 2], "alpha_max": 0.25, "support_top_k": 5}'


def test_a_chat_is_kept_as_json_and_read_back_as_text() -> None:
    chat = [
        {"role": "system", "content": "é"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1]}}}]},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    params = OptimalSamplingParams(theta_messages=chat)
    assert isinstance(params.theta_messages, str)
    assert "é" in params.theta_messages
    assert params == OptimalSamplingParams(theta_messages=params.theta_messages)
    messages = parse_messages(params.theta_messages)
    assert [message["content"] for message in messages] == ["é", "", "a\nb"]
    assert messages[1]["tool_calls"] == chat[1]["tool_calls"]
    assert messages[2]["name"] == "Ann"
    assert parse_messages(r'[{"role": "user", "content": "\ud83d\ude00"}]')[0]["content"] == "\N{GRINNING FACE}"


# Round trips

# A busy machine is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CHARACTERS = 'aé\u4e2d\N{GRINNING FACE}\0\n\\"{}[]'


def one_or_two(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return numbers | st.tuples(numbers, numbers)


def consistent(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments that go together: what the method does not read or what is without effect is refused."""
    method = given.get("alpha_method", "kl_symmetry")
    given = {name: value for name, value in given.items() if method in READERS.get(name, (method,))}
    if method == "kl_budget":
        given.setdefault("kl_budget", 0.1)
    if not given.get("return_alpha"):
        given.pop("return_top_k", None)
    if any(isinstance(given.get(name), tuple) for name in SCHEDULED):
        return {"alpha_steps": 3, **given}
    return {name: value for name, value in given.items() if name != "alpha_steps"}


fractions = st.floats(0, 1)
theta_prompts = st.one_of(
    st.just({}),
    st.builds(lambda text: {"theta_prompt": text}, st.text(CHARACTERS, min_size=1)),
    st.builds(lambda ids: {"theta_prompt_token_ids": ids}, st.lists(st.integers(0, 2**31 - 1), min_size=1)),
    st.builds(
        lambda texts: {"theta_messages": [{"role": "user", "content": text} for text in texts]},
        st.lists(st.text(CHARACTERS), min_size=1, max_size=3),
    ),
)
other_arguments = st.fixed_dictionaries(
    {},
    optional={
        "alpha_method": st.sampled_from(ALPHA_METHODS),
        "alpha": one_or_two(fractions),
        "alpha_min": one_or_two(st.floats(0, 0.5)),
        "alpha_max": one_or_two(st.floats(0.5, 1)),
        "kl_budget": one_or_two(st.floats(1e-6, 10)),
        "js_sensitivity": st.floats(0, 1000, exclude_min=True),
        "alpha_steps": st.integers(1, 2**31 - 1),
        "support_top_k": st.none() | st.integers(1, 2**31 - 1),
        "support_top_p": st.none() | st.floats(0, 1, exclude_min=True),
        "teacher_only_tokens": st.integers(0, 2**31 - 1),
        "max_js_divergence": st.none() | st.floats(0, 10),
        "return_alpha": st.booleans(),
        "return_top_k": st.integers(0, 128),
    },
).map(consistent)
requests = st.one_of(
    st.just(OptimalSamplingParams(optimal_sampling=False)),
    st.builds(lambda prompt, rest: OptimalSamplingParams(**prompt, **rest), theta_prompts, other_arguments),
)


@patient
@given(requests, st.booleans())
def test_round_trip_through_json(params: OptimalSamplingParams, with_defaults: bool) -> None:
    arguments = params.to_extra_args(with_defaults=with_defaults)
    assert OptimalSamplingParams.from_extra_args(json.loads(json.dumps(arguments))) == params
    assert OptimalSamplingParams.from_resolved_extra_args(arguments) == params
    for value in arguments.values():
        assert isinstance(value, (str, int, float, list))
        assert not isinstance(value, list) or all(type(item) in (int, float) for item in value)


@patient
@given(requests)
def test_round_trip_through_the_types_of_vllm_xargs(params: OptimalSamplingParams) -> None:
    """vLLM's server reads true as 1 and false as 0."""
    from pydantic import TypeAdapter

    vllm_xargs = TypeAdapter(dict[str, str | int | float | list[str | int | float]])
    received = vllm_xargs.validate_json(json.dumps(params.to_extra_args()))
    assert OptimalSamplingParams.from_extra_args(received) == params


@patient
@given(requests, requests)
def test_with_defaults_overrules_an_engine_of_other_defaults(
    params: OptimalSamplingParams, engine: OptimalSamplingParams
) -> None:
    merged = OptimalSamplingParams.from_extra_args(params.to_extra_args(with_defaults=True), engine)
    for name in (
        "optimal_sampling",
        "alpha_method",
        "alpha",
        "alpha_min",
        "alpha_max",
        "kl_budget",
        "js_sensitivity",
        "alpha_steps",
        "teacher_only_tokens",
        "return_alpha",
    ):
        assert getattr(merged, name) == getattr(params, name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS + "\ud800"),
    lambda children: st.lists(children) | st.dictionaries(st.sampled_from(["role", "content", "type", "a"]), children),
    max_leaves=5,
)


@patient
@given(st.dictionaries(st.sampled_from(sorted(ARGUMENTS)), json_values, max_size=3), requests)
def test_whatever_is_sent_gives_params_or_an_argument_error(
    extra_args: dict[str, Any], defaults: OptimalSamplingParams
) -> None:
    refused = None
    try:
        OptimalSamplingParams.from_extra_args(extra_args, defaults)
    except ArgumentError as error:
        refused = error
    assert refused is None or (refused.argument in ARGUMENTS and len(str(refused)) < 500)


# The engine's defaults

DEFAULTS = OptimalSamplingParams(theta_prompt="default", alpha_method="fixed", alpha=0.25, support_top_k=20)


@pytest.mark.parametrize(
    ("extra_args", "expected"),
    [
        ({}, DEFAULTS),
        (
            {"alpha": 0.75},
            OptimalSamplingParams(theta_prompt="default", alpha_method="fixed", alpha=0.75, support_top_k=20),
        ),
        (
            {"theta_prompt_token_ids": [1], "support_top_k": None},
            OptimalSamplingParams(theta_prompt_token_ids=(1,), alpha_method="fixed", alpha=0.25),
        ),
        ({"theta_prompt": None}, OptimalSamplingParams(alpha_method="fixed", alpha=0.25, support_top_k=20)),
        ({"optimal_sampling": 0}, OptimalSamplingParams(optimal_sampling=False)),
    ],
)
def test_a_request_comes_before_the_engine(extra_args: dict[str, Any], expected: OptimalSamplingParams) -> None:
    assert OptimalSamplingParams.from_extra_args(extra_args, DEFAULTS) == expected


def test_an_engines_schedule_holds_as_long_as_something_of_it_is_scheduled() -> None:
    engine = OptimalSamplingParams(alpha_method="kl_budget", kl_budget=[0.2, 0.0], alpha_steps=64)
    merged = OptimalSamplingParams.from_extra_args
    assert merged({}, engine) == engine
    assert merged({"kl_budget": 0.1}, engine) == OptimalSamplingParams(alpha_method="kl_budget", kl_budget=0.1)
    assert merged({"alpha_method": "entropy"}, engine) == OptimalSamplingParams(alpha_method="entropy")
    assert merged({"alpha_max": [1, 0.5]}, engine) == OptimalSamplingParams(
        alpha_method="kl_budget", kl_budget=(0.2, 0.0), alpha_max=(1, 0.5), alpha_steps=64
    )
    with pytest.raises(ArgumentError, match="needs kl_budget, in nats"):
        merged({"kl_budget": None}, engine)


def test_the_engines_alpha_is_for_the_methods_that_take_one() -> None:
    taken = {"theta_prompt": "default", "support_top_k": 20}
    assert OptimalSamplingParams.from_extra_args({"alpha_method": "entropy"}, DEFAULTS) == OptimalSamplingParams(
        alpha_method="entropy", **taken
    )
    assert OptimalSamplingParams.from_extra_args({"alpha_method": "arithmetic"}, DEFAULTS) == OptimalSamplingParams(
        alpha_method="arithmetic", alpha=0.25, **taken
    )
    with pytest.raises(ArgumentError, match=r"^alpha=0\.3 has no effect with alpha_method='entropy'"):
        OptimalSamplingParams.from_extra_args({"alpha_method": "entropy", "alpha": 0.3}, DEFAULTS)


@pytest.mark.parametrize(
    ("defaults", "extra_args", "sentence"),
    [
        (
            {"alpha_max": 0.5},
            {"alpha_min": 0.9},
            "alpha_min=0.9 is above alpha_max=0.5; swap them or drop one (alpha_max=0.5 is this engine's default; a "
            "request's own value comes before it)",
        ),
        (
            {"alpha_method": "entropy"},
            {"alpha": 0.25},
            "alpha=0.25 has no effect with alpha_method='entropy', which finds alpha for each token; ask for "
            "alpha_method='fixed' or 'arithmetic', or drop it (alpha_method='entropy' is this engine's default; a request's "
            "own value comes before it)",
        ),
        (
            {"alpha_max": 0.5},
            {"alpha_min": 0.9, "alpha_max": 0.1},
            "alpha_min=0.9 is above alpha_max=0.1; swap them or drop one",
        ),
        ({"alpha_max": 0.5}, {"alpha": 2}, "alpha=2.0 is outside [0, 1]; 0 is theta alone, 1 is the teacher alone"),
    ],
)
def test_an_engines_default_in_a_refusal_is_named_as_such(
    defaults: dict[str, Any], extra_args: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        OptimalSamplingParams.from_extra_args(extra_args, OptimalSamplingParams(**defaults))
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("defaults", "unset"),
    [
        ({"support_top_k": 5}, {"support_top_k": None}),
        ({"support_top_p": 0.5}, {"support_top_p": None}),
        ({"max_js_divergence": 0.1}, {"max_js_divergence": None}),
        ({"theta_prompt": "a"}, {"theta_prompt": None}),
        ({"alpha_min": 0.1, "alpha_max": 0.9}, {"alpha_min": 0, "alpha_max": 1}),
        ({"alpha_method": "fixed", "alpha": 0.1}, {"alpha_method": "kl_symmetry"}),
        ({"teacher_only_tokens": 3}, {"teacher_only_tokens": 0}),
        ({"return_alpha": True}, {"return_alpha": False}),
        ({"optimal_sampling": False}, {"optimal_sampling": True}),
    ],
)
def test_every_default_of_an_engine_can_be_unset(defaults: dict[str, Any], unset: dict[str, Any]) -> None:
    """As docs/parameters.md says."""
    engine = OptimalSamplingParams(**defaults)
    assert OptimalSamplingParams.from_extra_args({}, engine) != OptimalSamplingParams()
    assert OptimalSamplingParams.from_extra_args(unset, engine) == OptimalSamplingParams()


def test_an_engine_may_leave_opting_in_to_the_requests() -> None:
    off = OptimalSamplingParams(optimal_sampling=False)
    assert OptimalSamplingParams.from_extra_args({}, off) == off
    asked = OptimalSamplingParams.from_extra_args({"optimal_sampling": True, "theta_prompt": "a"}, off)
    assert asked == OptimalSamplingParams(theta_prompt="a")
    with pytest.raises(ArgumentError, match="this engine samples from the teacher alone unless a request says so"):
        OptimalSamplingParams.from_extra_args({"theta_prompt": "a"}, off)


# The package


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(params_module).attempted >= 4
    assert doctest.testmod(params_module).failed == 0


def test_the_params_need_neither_torch_nor_vllm() -> None:
    code = (
        "import sys, vllm_optimal_sampling; vllm_optimal_sampling.OptimalSamplingParams();"
        "assert not {'torch', 'vllm', 'transformers', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_name_of_the_package_is_an_attribute_error() -> None:
    import vllm_optimal_sampling

    assert "OptimalSamplingParams" in dir(vllm_optimal_sampling)
    with pytest.raises(AttributeError, match="has no attribute 'OptimalSamplingParam'"):
        vllm_optimal_sampling.OptimalSamplingParam  # noqa: B018
