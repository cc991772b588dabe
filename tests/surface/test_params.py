"""The request arguments: nothing is lost between a client and the engine, and a request's come before the engine's."""

import doctest
import json
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


def test_variables_of_thetas_template_become_json() -> None:
    given = {"enable_thinking": False, "note": "é", "tools": [{"name": "f"}]}
    params = OptimalSamplingParams(theta_messages=CHAT, theta_chat_template_kwargs=given)
    assert params.theta_chat_template_kwargs == '{"enable_thinking": false, "note": "é", "tools": [{"name": "f"}]}'
    escaped = json.dumps(given)
    assert params == OptimalSamplingParams(theta_messages=CHAT, theta_chat_template_kwargs=escaped)
    for nothing in (None, {}, "{}"):
        assert OptimalSamplingParams(theta_chat_template_kwargs=nothing) == OptimalSamplingParams()


def test_variables_go_with_the_chat_that_they_are_for() -> None:
    """Where the engine's default is a chat with variables."""
    engine = OptimalSamplingParams(theta_messages=CHAT, theta_chat_template_kwargs={"a": 1})
    merged = OptimalSamplingParams.from_extra_args
    assert merged({}, engine) == engine
    assert merged({"theta_prompt": "x"}, engine) == OptimalSamplingParams(theta_prompt="x")
    assert merged({"theta_messages": None}, engine) == OptimalSamplingParams()
    with pytest.raises(ArgumentError, match="theta_prompt goes through no chat template of theta's"):
        merged({"theta_prompt": "x", "theta_chat_template_kwargs": {"a": 2}}, engine)
    with pytest.raises(ArgumentError, match="has no meaning with optimal_sampling=False"):
        merged({"optimal_sampling": False, "theta_chat_template_kwargs": {"a": 2}}, engine)


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
    st.builds(
        lambda variables: {"theta_messages": CHAT, "theta_chat_template_kwargs": variables},
        st.dictionaries(st.text(CHARACTERS), st.none() | st.booleans() | st.text(CHARACTERS) | st.lists(st.integers())),
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
