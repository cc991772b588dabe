"""Every refusal of a request's arguments in its own words."""

import math
import pickle
from typing import Any

import pytest

from vllm_optimal_sampling.params import (
    ARGUMENTS,
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
    # what theta's template reads
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": 3},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs=3 is an integer, not an object or that object as JSON text",
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": "enable_thinking"},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs='enable_thinking' is not JSON (Expecting value: line 1 column 1 (char 0)); give what "
        'theta\'s template reads, such as {"enable_thinking": false}',
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": "[1]"},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs=[1] is not an object; give what theta's template reads, such as "
        '{"enable_thinking": false}',
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": {1: 2}},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs={1: 2} is not an object; give what theta's template reads, such as "
        '{"enable_thinking": false}',
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": {"chat_template": "x", "tokenize": False}},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs has chat_template, tokenize, which is no variable of a template; drop it",
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": '{"max_length": 1000000000}'},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs has max_length, which is no variable of a template; drop it",
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": '{"a": ' * 40 + "1" + "}" * 40},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs is nested more than 16 levels deep; flatten it",
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": '{"a": ' * 10**6},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs is nested more than 16 levels deep; flatten it",
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": r'{"a": "\ud800"}'},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs has half a surrogate pair (U+D800) at character 7; send valid Unicode text",
    ),
    (
        {"theta_messages": CHAT, "theta_chat_template_kwargs": {"a": {1}}},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs cannot be written as JSON (Object of type set is not JSON serializable)",
    ),
    (
        {"theta_chat_template_kwargs": {"enable_thinking": False}},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs='{\"enable_thinking\": false}' has no effect: the teacher's prompt, which theta reads, "
        "goes through no chat template of theta's; give theta's chat as theta_messages, or drop it",
    ),
    (
        {"theta_prompt_token_ids": [1], "theta_chat_template_kwargs": {"enable_thinking": False}},
        "theta_chat_template_kwargs",
        "theta_chat_template_kwargs='{\"enable_thinking\": false}' has no effect: theta_prompt_token_ids goes through no chat "
        "template of theta's; give theta's chat as theta_messages, or drop it",
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
