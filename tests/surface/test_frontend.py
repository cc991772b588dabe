"""What the front end makes of a request. Requests are admitted by vLLM's own input processor first."""

import inspect
import json
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from configurations import MAX_MODEL_LEN, VOCAB_SIZE, save_model
from vllm import SamplingParams
from vllm.config import ModelConfig
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor

from vllm_optimal_sampling import wire
from vllm_optimal_sampling.engine_core.block_hashes import extra_keys
from vllm_optimal_sampling.engine_core.layout import ThetaLayout
from vllm_optimal_sampling.front_end.admission import RequestResolver, refuse_beam_search
from vllm_optimal_sampling.front_end.theta_prompt import CHARACTERS_PER_POSITION
from vllm_optimal_sampling.params import OptimalSamplingParams
from vllm_optimal_sampling.template_variables import NOT_OF_TEMPLATES

BuildConfig = Callable[..., Any]
PROMPT = [5, 6, 7, 8]


class Frontend:
    """vLLM's admission of a request and the resolver after it, as the hook puts them together."""

    def __init__(self, config: Any) -> None:
        self.processor = InputProcessor.__new__(InputProcessor)
        inspect.unwrap(InputProcessor.__init__)(self.processor, config)
        self.resolver = RequestResolver(config)

    @property
    def tokenizer(self) -> Any:
        return self.processor.get_tokenizer()

    def admit(
        self, extra_args: Any = None, *, prompt: list[int] = PROMPT, resumable: bool = False, **options: Any
    ) -> EngineCoreRequest:
        sampling_params = SamplingParams(**{"max_tokens": 16, **options}, extra_args=extra_args)
        return self.admit_params(sampling_params, prompt=prompt, resumable=resumable)

    def admit_params(self, sampling_params: Any, *, prompt: list[int] = PROMPT, resumable: bool = False) -> Any:
        given = sampling_params.max_tokens is not None
        request = inspect.unwrap(InputProcessor.process_inputs)(
            self.processor,
            "request",
            {"type": "token", "prompt_token_ids": prompt},
            sampling_params,
            ("generate",),
            resumable=resumable,
        )
        self.resolver.resolve(request, max_tokens_given=given)
        return request

    def refuse(self, extra_args: Any = None, **options: Any) -> str:
        """The client's error, which names the argument."""
        with pytest.raises(VLLMValidationError) as caught:
            self.admit(extra_args, **options)
        assert caught.value.parameter is not None
        return caught.value.args[0]


@pytest.fixture(scope="module")
def frontend(build_config: BuildConfig) -> Frontend:
    return Frontend(build_config())


@pytest.fixture(scope="module")
def small_theta(build_config: BuildConfig) -> Frontend:
    """Theta reads half of what the teacher reads, as vLLM 0.32 allows (0.33 lowers the teacher's length)."""
    config = build_config()
    config.speculative_config.draft_model_config.max_model_len = MAX_MODEL_LEN // 2
    return Frontend(config)


# Theta's prompt


def test_text_is_tokenised_by_theta(frontend: Frontend) -> None:
    text = "the lazy fox\0 \N{GRINNING FACE}"
    request = frontend.admit({"theta_prompt": text})
    assert request.sampling_params.extra_args == {"theta_prompt_token_ids": frontend.tokenizer.encode(text)}
    assert request.prompt_token_ids == PROMPT


def test_special_tokens_of_theta_are_added_to_text_and_not_to_a_chat(build_config: BuildConfig, tmp_path: Any) -> None:
    """Theta has the teacher's tokens, and its own rule for what comes first."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    path = save_model(tmp_path / "theta")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save_pretrained(path)
    frontend = Frontend(build_config(speculative_config={"model": path, "num_speculative_tokens": 3}))
    plain = frontend.tokenizer.encode("the fox")
    assert frontend.admit({"theta_prompt": "the fox"}).sampling_params.extra_args == {
        "theta_prompt_token_ids": [0, *plain]
    }
    chat = frontend.admit({"theta_messages": [{"role": "user", "content": "the fox"}]})
    ids = chat.sampling_params.extra_args["theta_prompt_token_ids"]
    assert ids == frontend.tokenizer.encode("user: the fox\nassistant:")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_chat_goes_through_thetas_template(frontend: Frontend, as_json: bool) -> None:
    chat: Any = [{"role": "user", "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "3"}]}]
    request = frontend.admit({"theta_messages": json.dumps(chat) if as_json else chat})
    expected = frontend.tokenizer.encode("user: 2\n3\nassistant:")
    assert request.sampling_params.extra_args == {"theta_prompt_token_ids": expected}


def test_the_engines_template_and_system_prompt_come_first(build_config: BuildConfig) -> None:
    settings = {
        "theta_chat_template": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        "theta_system_prompt": "Think.",
    }
    frontend = Frontend(build_config(additional_config={"optimal_sampling": settings}))
    user = [{"role": "user", "content": "2"}]
    for chat, text in [
        (user, "<system>Think.<user>2"),
        ([{"role": "system", "content": "Guess."}, *user], "<system>Guess.<user>2"),
    ]:
        request = frontend.admit({"theta_messages": chat})
        ids = request.sampling_params.extra_args["theta_prompt_token_ids"]
        assert ids == frontend.tokenizer.encode(text)


@pytest.mark.parametrize(
    ("given", "text"), [({}, "2<think>"), ({"enable_thinking": False}, "2"), ({"unread": 1}, "2<think>")]
)
def test_thetas_template_reads_the_engines_variables(build_config: BuildConfig, given: Any, text: str) -> None:
    template = "{{ messages[0].content }}{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    settings = {"theta_chat_template": template, "theta_chat_template_kwargs": given}
    frontend = Frontend(build_config(additional_config={"optimal_sampling": settings}))
    request = frontend.admit({"theta_messages": [{"role": "user", "content": "2"}]})
    assert request.sampling_params.extra_args["theta_prompt_token_ids"] == frontend.tokenizer.encode(text)


THINKING = (
    "{{ messages[0].content }}{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}{{ note }}"
)


@pytest.mark.parametrize(
    ("engines", "requests", "text"),
    [
        ({}, {"enable_thinking": False}, "2"),
        ({}, '{"enable_thinking": false, "note": "\\u00e9"}', "2\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ({"enable_thinking": False}, {"enable_thinking": True}, "2<think>"),
        ({"enable_thinking": False, "note": "!"}, {"note": "?"}, "2?"),
        ({"enable_thinking": False}, {"enable_thinking": None, "note": "auto"}, "2"),  # as vLLM merges: both are unset
        ({"enable_thinking": False}, {}, "2"),
        ({}, {"unread": {"x": [1]}}, "2<think>"),
    ],
)
def test_a_requests_variables_come_before_the_engines(
    build_config: BuildConfig, engines: Any, requests: Any, text: str
) -> None:
    settings = {"theta_chat_template": THINKING, "theta_chat_template_kwargs": engines}
    frontend = Frontend(build_config(additional_config={"optimal_sampling": settings}))
    arguments = {"theta_messages": [{"role": "user", "content": "2"}], "theta_chat_template_kwargs": requests}
    request = frontend.admit(arguments, n=3)
    # The engine is told theta's tokens, and nothing of what they were made of.
    assert request.sampling_params.extra_args == {"theta_prompt_token_ids": frontend.tokenizer.encode(text)}
    before = frontend.admit({"theta_messages": arguments["theta_messages"]})
    assert before.sampling_params.extra_args == {
        "theta_prompt_token_ids": frontend.tokenizer.encode(
            "2" + "<think>" * engines.get("enable_thinking", True) + engines.get("note", "")
        )
    }


def test_variables_go_with_an_engines_default_chat(build_config: BuildConfig) -> None:
    chat = [{"role": "user", "content": "2"}]
    settings = {"theta_chat_template": THINKING, "theta_messages": chat}
    frontend = Frontend(build_config(additional_config={"optimal_sampling": settings}))
    request = frontend.admit({"theta_chat_template_kwargs": {"enable_thinking": False}})
    assert request.sampling_params.extra_args == {"theta_prompt_token_ids": frontend.tokenizer.encode("2")}
    assert frontend.refuse({"theta_chat_template_kwargs": {"enable_thinking": False}, "theta_prompt": "a"}) == (
        "theta_chat_template_kwargs='{\"enable_thinking\": false}' has no effect: theta_prompt goes through no chat template "
        "of theta's; give theta's chat as theta_messages, or drop it"
    )


def test_tools_are_variables_of_a_template(build_config: BuildConfig) -> None:
    template = "{{ messages[0].content }}{% for tool in tools %}{{ tool.name }}{% endfor %}"
    frontend = Frontend(build_config(additional_config={"optimal_sampling": {"theta_chat_template": template}}))
    variables = {"tools": [{"name": "add"}, {"name": "sub"}]}
    arguments = {"theta_messages": [{"role": "user", "content": "2"}], "theta_chat_template_kwargs": variables}
    ids = frontend.admit(arguments).sampling_params.extra_args["theta_prompt_token_ids"]
    assert ids == frontend.tokenizer.encode("2addsub")


def test_what_else_a_tokenizer_takes_beside_a_chat_is_refused() -> None:
    """A request could have its chat padded to a billion tokens, cut off, or made into something else than tokens."""
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.chat_template_utils import render_jinja_template

    taken = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}
    taken |= {*inspect.signature(render_jinja_template).parameters, "messages"}
    assert taken - {"self", "kwargs", "tools", "documents"} == set(NOT_OF_TEMPLATES)


def test_a_template_may_refuse_variables(build_config: BuildConfig) -> None:
    template = "{{ messages[0].content }}{% if effort %}{{ raise_exception('no such effort: ' + effort) }}{% endif %}"
    frontend = Frontend(build_config(additional_config={"optimal_sampling": {"theta_chat_template": template}}))
    arguments = {"theta_messages": [{"role": "user", "content": "2"}], "theta_chat_template_kwargs": {"effort": "much"}}
    assert frontend.refuse(arguments) == (
        "theta's chat template refused theta_messages with theta_chat_template_kwargs: no such effort: much"
    )


def test_token_ids_are_taken_as_they_are(frontend: Frontend) -> None:
    ids = [VOCAB_SIZE - 1, 0, 5]
    request = frontend.admit({"theta_prompt_token_ids": tuple(ids)})
    assert request.sampling_params.extra_args == {"theta_prompt_token_ids": ids}


@pytest.mark.parametrize("extra_args", [None, {}, {"theta_prompt_token_ids": PROMPT}, {"alpha_max": 1.0}])
def test_nothing_is_sent_where_theta_reads_the_teachers_prompt(frontend: Frontend, extra_args: Any) -> None:
    assert frontend.admit(extra_args).sampling_params.extra_args is None


# Arguments


def test_the_callers_params_are_not_touched(frontend: Frontend) -> None:
    extra_args = {"theta_prompt": "the fox", "alpha_max": 0.5, "session_id": "s"}
    params = SamplingParams(max_tokens=None, extra_args=extra_args)
    request = frontend.admit_params(params)
    assert params.extra_args is extra_args
    assert extra_args == {"theta_prompt": "the fox", "alpha_max": 0.5, "session_id": "s"}
    assert request.sampling_params.extra_args.keys() == {"theta_prompt_token_ids", "alpha_max", "session_id"}
    shared = SamplingParams(max_tokens=3, extra_args=extra_args, skip_clone=True)
    assert frontend.admit_params(shared).sampling_params == frontend.admit_params(shared).sampling_params
    assert shared.extra_args is extra_args


def test_the_engines_defaults_are_merged_once(build_config: BuildConfig) -> None:
    """What the engine reads back is what was resolved, without a look at the engine's defaults."""
    defaults = {"alpha_method": "fixed", "alpha": 0.25, "theta_prompt": "the", "other_extra_args": ["theirs"]}
    frontend = Frontend(build_config(additional_config={"optimal_sampling": defaults}))
    the = tuple(frontend.tokenizer.encode("the"))

    def resolved(extra_args: Any) -> OptimalSamplingParams:
        request = frontend.admit(extra_args)
        return OptimalSamplingParams.from_resolved_extra_args(request.sampling_params.extra_args)

    fixed = {"alpha_method": "fixed", "theta_prompt_token_ids": the}
    assert resolved({}) == OptimalSamplingParams(alpha=0.25, **fixed)
    assert resolved({"alpha": 0.5, "theirs": 3}) == OptimalSamplingParams(alpha=0.5, **fixed)
    assert resolved({"alpha_method": "kl_symmetry", "theta_prompt": None}) == OptimalSamplingParams()
    assert resolved({"theta_prompt_token_ids": [9]}) == OptimalSamplingParams(
        alpha_method="fixed", alpha=0.25, theta_prompt_token_ids=(9,)
    )
    assert resolved({"optimal_sampling": False}) == OptimalSamplingParams(optimal_sampling=False)


def test_a_support_of_all_tokens_is_none(build_config: BuildConfig) -> None:
    """Over HTTP, where null cannot be sent, this unsets an engine's default."""
    frontend = Frontend(build_config(additional_config={"optimal_sampling": {"support_top_k": 5}}))
    assert frontend.admit().sampling_params.extra_args == {"support_top_k": 5}
    for all_tokens in (2**31 - 1, VOCAB_SIZE):
        assert frontend.admit({"support_top_k": all_tokens}).sampling_params.extra_args is None
    assert frontend.admit({"support_top_k": VOCAB_SIZE - 1}).sampling_params.extra_args is not None


def test_pooling_requests_are_left_alone(frontend: Frontend) -> None:
    request = frontend.admit()
    request.sampling_params = None
    frontend.resolver.resolve(request)
    assert request.sampling_params is None


@pytest.mark.parametrize(
    "options",
    [
        {"n": 3},
        {"prompt_logprobs": 1},
        {"logprobs": 2, "temperature": 0.0},
        {"stop": ["a"], "min_tokens": 2, "seed": 3},
    ],
    ids=str,
)
def test_vllms_other_parameters_stay(frontend: Frontend, options: dict[str, Any]) -> None:
    request = frontend.admit({"theta_prompt": "the"}, **options)
    for name, value in options.items():
        assert getattr(request.sampling_params, name) == value
    assert request.sampling_params.max_tokens == 16


# Lengths


def test_thetas_prompt_and_output_fit_exactly(frontend: Frontend) -> None:
    ids = [9] * (MAX_MODEL_LEN - 1)
    assert frontend.admit({"theta_prompt_token_ids": ids}, max_tokens=1).sampling_params.max_tokens == 1
    ids = [9] * (MAX_MODEL_LEN - 16)
    assert frontend.admit({"theta_prompt_token_ids": ids}, max_tokens=16).sampling_params.max_tokens == 16
    assert frontend.refuse({"theta_prompt_token_ids": [*ids, 9]}, max_tokens=16) == (
        "theta_prompt_token_ids (113 tokens) plus max_tokens=16 goes beyond the 128 tokens that theta reads; lower "
        "max_tokens to 15 or less, or shorten theta_prompt_token_ids"
    )


@pytest.mark.parametrize("name", ["theta_prompt_token_ids", "theta_prompt", "theta_messages"])
def test_a_theta_prompt_without_room_for_a_token_is_refused(frontend: Frontend, name: str) -> None:
    text = "\x01" * MAX_MODEL_LEN  # one byte, one token
    values: dict[str, tuple[Any, int]] = {
        "theta_prompt_token_ids": ([9] * MAX_MODEL_LEN, MAX_MODEL_LEN),
        "theta_prompt": (text, MAX_MODEL_LEN),
        "theta_messages": (
            [{"role": "user", "content": text}],
            len(frontend.tokenizer.encode(f"user: {text}\nassistant:")),
        ),
    }
    value, tokens = values[name]
    assert frontend.refuse({name: value}, max_tokens=1) == (
        f"{name} has {tokens} tokens, and theta reads at most 128, with at least one token of output; shorten it, or "
        "start the engine with a larger --max-model-len"
    )


def test_max_tokens_is_lowered_where_it_was_left_open(frontend: Frontend) -> None:
    longer = {"theta_prompt_token_ids": [9] * 100}
    room = MAX_MODEL_LEN - len(PROMPT)
    assert frontend.admit(longer, max_tokens=None).sampling_params.max_tokens == 28
    assert frontend.admit(longer, max_tokens=room).sampling_params.max_tokens == 28  # filled in by vLLM's server
    assert frontend.admit({}, max_tokens=None).sampling_params.max_tokens == room
    assert frontend.admit({"theta_prompt": "a"}, max_tokens=None).sampling_params.max_tokens == room
    assert frontend.refuse(longer, max_tokens=None, min_tokens=29) == (
        "min_tokens=29 is more than the 28 tokens that theta_prompt_token_ids (100 tokens) leaves of the 128 that "
        "theta reads; lower it, or shorten theta_prompt_token_ids"
    )


def test_what_vllm_stops_by_itself_is_not_refused(frontend: Frontend) -> None:
    prompt = [9] * (MAX_MODEL_LEN - 2)
    request = frontend.admit({"theta_prompt": "the fox"}, prompt=prompt, max_tokens=1000)
    assert request.sampling_params.max_tokens == 1000


def test_sessions_of_models_that_keep_a_state_are_refused(
    build_config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    frontend = Frontend(build_config())
    monkeypatch.setattr(ModelConfig, "is_hybrid", property(lambda self: True))
    assert frontend.refuse(resumable=True) == (
        "a session that streams its input is not shown exact where layers of the model keep a state; send whole prompts, "
        "or set optimal_sampling to false"
    )
    assert frontend.admit({"optimal_sampling": False}, resumable=True)
    assert frontend.admit()


def test_a_theta_that_reads_less_than_the_teacher(small_theta: Frontend) -> None:
    half = MAX_MODEL_LEN // 2
    long, short = [9] * (half + 10), [9] * 10
    assert small_theta.admit(prompt=short, max_tokens=None).sampling_params.max_tokens == half - 10
    assert small_theta.admit({"theta_prompt_token_ids": short}, prompt=long, max_tokens=half - 10)
    for extra_args in ({}, {"optimal_sampling": False}):  # theta reads along to draft
        message = small_theta.refuse(extra_args, prompt=long)
        assert message.startswith(f"prompt has {half + 10} tokens, and theta reads at most {half}")
        message = small_theta.refuse(extra_args, prompt=short, max_tokens=half)
        assert message.startswith(f"prompt (10 tokens) plus max_tokens={half} goes beyond the {half} tokens")
    assert small_theta.refuse(resumable=True).startswith("a session that streams its input may grow to the teacher's")


def test_a_length_that_vllm_lowers_later_counts(build_config: BuildConfig) -> None:
    """With --max-model-len auto, the engine tells the front end how much fits into memory."""
    config = build_config()
    frontend = Frontend(config)
    config.model_config.max_model_len = 32
    assert frontend.refuse({"theta_prompt_token_ids": [9] * 32}).startswith("theta_prompt_token_ids has 32 tokens")


# A prompt for theta is required


def test_a_request_without_a_theta_prompt_is_refused_where_one_is_required(build_config: BuildConfig) -> None:
    frontend = Frontend(build_config(additional_config={"optimal_sampling": {"require_theta_prompt": True}}))
    for extra_args in (None, {}, {"alpha_max": 0.5}, {"theta_prompt": None}, {"optimal_sampling": True}):
        assert frontend.refuse(extra_args).startswith("this engine requires a prompt for theta (require_theta_prompt)")
    for extra_args in (
        {"theta_prompt": "the"},
        {"theta_prompt_token_ids": [1]},
        {"theta_messages": [{"role": "user", "content": "the"}]},
        {"optimal_sampling": False},
    ):
        frontend.admit(extra_args)
    assert frontend.refuse(resumable=True).startswith("this engine requires")


def test_an_engines_default_prompt_that_does_not_fit_is_named_as_such(build_config: BuildConfig) -> None:
    default = {"theta_prompt_token_ids": [1] * MAX_MODEL_LEN}
    frontend = Frontend(build_config(additional_config={"optimal_sampling": default}))
    assert frontend.refuse().endswith("(theta_prompt_token_ids is this engine's default, not the request's)")
    assert "default" not in frontend.refuse(default)


# Refusals


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"theta_promt": "a"}, "theta_promt is not an argument of optimal sampling: did you mean theta_prompt?"),
    ({"alpha": "0.5"}, "alpha='0.5' is text, not a number; send it without quotes (0.5)"),
    ({"alpha": float("nan")}, "alpha=nan is not a finite number; give an ordinary one"),
    ({"alpha": 1.5}, "alpha=1.5 is outside [0, 1]; 0 is theta alone, 1 is the teacher alone"),
    (
        {"theta_prompt": "a", "theta_prompt_token_ids": [1]},
        "theta_prompt and theta_prompt_token_ids are both theta's prompt; give one of them",
    ),
    (
        {"theta_prompt": ""},
        "theta_prompt is empty; give theta at least one token, or leave it out for the teacher's prompt",
    ),
    (
        {"theta_prompt_token_ids": []},
        "theta_prompt_token_ids is empty; give at least one token, or leave it out for the teacher's prompt",
    ),
    (
        {"theta_prompt_token_ids": [1, VOCAB_SIZE]},
        "theta_prompt_token_ids has token id 300 at position 1, which is not in theta's vocabulary; ids run from 0 to "
        "299",
    ),
    (
        {"theta_prompt_token_ids": [-1]},
        "theta_prompt_token_ids[0]=-1 is not a token id; ids run from 0 to below the vocabulary size",
    ),
    (
        {"theta_messages": "[{"},
        "theta_messages='[{' is not JSON (Expecting property name enclosed in double quotes: line 1 column 3 (char 2))"
        '; give a list of messages such as [{"role": "user", "content": "..."}]',
    ),
    (
        {"theta_messages": [{"role": "user", "content": "refuse"}]},
        "theta's chat template refused theta_messages: no such role",
    ),
    (
        {"theta_chat_template": "{{ messages }}"},
        "theta_chat_template is not an argument of a request but a setting of the engine; drop it",
    ),
    (
        {"optimal_sampling": False, "theta_prompt": "a"},
        "theta_prompt='a' has no meaning with optimal_sampling=False, which draws from the teacher alone; drop it, or "
        "ask for optimal_sampling=True",
    ),
]


@pytest.mark.parametrize(("extra_args", "sentence"), REFUSALS, ids=[str(extra_args) for extra_args, _ in REFUSALS])
def test_refusals(frontend: Frontend, extra_args: dict[str, Any], sentence: str) -> None:
    assert frontend.refuse(extra_args) == sentence
    assert frontend.admit({"theta_prompt": "the fox"})


def test_the_teachers_prompt_too_has_to_be_in_thetas_vocabulary(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded vocabularies differ, and a client may send an id of the padding."""
    monkeypatch.setattr(frontend.resolver.theta_config, "get_vocab_size", lambda: VOCAB_SIZE - 10)
    for extra_args in ({}, {"optimal_sampling": False}):
        assert frontend.refuse(extra_args, prompt=[5, VOCAB_SIZE - 1]) == (
            "prompt has token id 299 at position 1, which is not in theta's vocabulary; ids run from 0 to 289"
        )


def test_the_error_is_the_clients_and_names_the_argument(frontend: Frontend) -> None:
    with pytest.raises(VLLMClientError) as caught:
        frontend.admit({"theta_promt": "a"})
    assert str(caught.value).endswith("did you mean theta_prompt? (parameter=theta_promt)")


@pytest.mark.parametrize(
    "name", ["theta_prompt", "theta_messages", "theta_chat_template_kwargs", "theta_prompt_token_ids"]
)
def test_what_cannot_fit_is_refused_unread(frontend: Frontend, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(frontend.resolver.prompts, "_tokenizer", None)
    value: Any = [1] * 10**6 if name == "theta_prompt_token_ids" else "x" * 10**7
    message = frontend.refuse({name: value})
    assert "characters, and more than" in message or "1000000 tokens, and theta reads at most 128" in message


def test_the_bound_on_text_is_in_characters_for_each_position(frontend: Frontend) -> None:
    bound = CHARACTERS_PER_POSITION * MAX_MODEL_LEN
    message = f"has {bound + 1} characters, and more than {bound} cannot fit into the 128 tokens that theta reads"
    assert message in frontend.refuse({"theta_prompt": " " * (bound + 1)})
    assert message in frontend.refuse({"theta_messages": [{"role": "user", "content": " " * (bound + 1)}]})
    chat = {"theta_messages": [{"role": "user", "content": "a"}]}
    size = len('{"x": ""}')
    assert message in frontend.refuse(chat | {"theta_chat_template_kwargs": {"x": " " * (bound + 1 - size)}})
    frontend.admit(chat | {"theta_chat_template_kwargs": {"x": " " * (bound - size)}})
    assert "tokens, and theta reads at most 128" in frontend.refuse({"theta_prompt": "." * bound})


def test_a_tokenizer_that_fails_is_the_clients_error(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def encode(self, *_: Any, **__: Any) -> list[int]:
            raise OverflowError("no\nway")

    monkeypatch.setattr(frontend.resolver.prompts, "_theta_tokenizer", Failing())
    assert frontend.refuse({"theta_prompt": "a"}) == "theta's tokenizer refused theta_prompt: no way"


def test_a_prompt_without_tokens_is_refused(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf:
        def encode(self, *_: Any, **__: Any) -> list[int]:
            return []

    monkeypatch.setattr(frontend.resolver.prompts, "_theta_tokenizer", Deaf())
    assert frontend.refuse({"theta_prompt": "a"}) == (
        "theta_prompt has no tokens; give theta at least one, or leave it out"
    )


def test_a_theta_without_template_needs_text(build_config: BuildConfig, tmp_path: Any) -> None:
    theta = save_model(tmp_path / "plain", chat_template=None)
    frontend = Frontend(build_config(speculative_config={"model": theta, "num_speculative_tokens": 3}))
    message = frontend.refuse({"theta_messages": [{"role": "user", "content": "a"}]})
    assert message.startswith(
        "theta has no chat template for theta_messages; give theta_prompt, or start the engine with"
    )


def test_a_template_cannot_reach_python(build_config: BuildConfig) -> None:
    """transformers renders templates in jinja's sandbox; they come from the engine's configuration only."""
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    config = build_config(additional_config={"optimal_sampling": {"theta_chat_template": template}})
    message = Frontend(config).refuse({"theta_messages": [{"role": "user", "content": "a"}]})
    assert message.startswith("theta's chat template refused theta_messages: access to attribute '__class__'")


def test_an_engine_without_tokenizer_takes_token_ids(build_config: BuildConfig) -> None:
    config = build_config(skip_tokenizer_init=True)
    resolver = RequestResolver(config)
    request = EngineCoreRequest(
        request_id="request",
        prompt_token_ids=PROMPT,
        mm_features=None,
        sampling_params=SamplingParams(extra_args={"theta_prompt": "a"}),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    with pytest.raises(VLLMValidationError, match="was started with skip_tokenizer_init; give theta_prompt_token_ids"):
        resolver.resolve(request)
    request.sampling_params = SamplingParams(extra_args={"theta_prompt_token_ids": [9]})
    resolver.resolve(request)
    assert request.sampling_params.extra_args == {"theta_prompt_token_ids": [9]}


def test_prompt_embeddings_are_refused(frontend: Frontend) -> None:
    import torch

    request = frontend.admit()
    request.prompt_token_ids, request.prompt_embeds = None, torch.zeros(4, 64)
    with pytest.raises(VLLMValidationError, match="theta cannot read prompt embeddings; send text or token ids"):
        frontend.resolver.resolve(request)


@pytest.mark.parametrize("extra_args", [{"theta_prompt": "a"}, {"theta_prompt_token_ids": PROMPT}])
def test_a_streamed_input_has_no_theta_prompt_of_its_own(frontend: Frontend, extra_args: dict[str, Any]) -> None:
    assert frontend.refuse(extra_args, resumable=True) == (
        f"{next(iter(extra_args))} cannot be given to a session that streams its input; leave it out, and theta reads "
        "what the teacher reads"
    )
    assert frontend.admit({"alpha_max": 0.5}, resumable=True).sampling_params.extra_args == {"alpha_max": 0.5}


def test_a_theta_that_scores_reads_a_streamed_input_that_opted_out(build_config: BuildConfig) -> None:
    """A later part may be mixed. What is drawn is the teacher's alone all the same."""
    scoring = Frontend(build_config(speculative_config=None, additional_config={"optimal_sampling": {"theta": "self"}}))
    opted_out = {"optimal_sampling": False}
    assert scoring.admit(opted_out).sampling_params.extra_args == opted_out
    session = scoring.admit(opted_out, resumable=True)
    assert session.sampling_params.extra_args == {"teacher_only_tokens": MAX_MODEL_LEN}


def test_no_cache_salt_stands_for_a_version_of_theta(frontend: Frontend) -> None:
    """What clients choose is their own: blocks of another version of theta have other keys, whatever the salt."""
    request = frontend.admit()
    request.cache_salt = "theta 1"
    before = extra_keys(("theta 1",), of_layout(request), 0, 4)
    frontend.resolver.theta_version = 1
    frontend.resolver.resolve(request)
    assert request.cache_salt == "theta 1"
    assert request.sampling_params.extra_args == {wire.THETA_VERSION: 1}
    keys = [before, extra_keys(("theta 1",), of_layout(request), 0, 4)]
    frontend.resolver.theta_version = 2
    other = frontend.admit({"theta_prompt_token_ids": [9, 8, 7]})
    keys += [extra_keys(None, of_layout(other), 0, 4)]
    other.sampling_params.extra_args[wire.THETA_VERSION] = 3
    keys += [extra_keys(None, of_layout(other), 0, 4)]
    assert len(set(keys)) == 4


def of_layout(request: EngineCoreRequest) -> Any:
    """As the scheduler lays a request out."""
    arguments = request.sampling_params.extra_args or {}
    layout = ThetaLayout.of_prompts(
        arguments.get(wire.THETA_PROMPT), len(PROMPT), 4, version=arguments.get(wire.THETA_VERSION, 0)
    )
    return SimpleNamespace(theta_layout=layout, all_token_ids=PROMPT, num_prompt_tokens=len(PROMPT))


def test_log_probabilities_that_vllm_loses_beside_drafts_are_refused(frontend: Frontend) -> None:
    """vLLM's rejection sampler has no `logprob_token_ids`: its server answers with status 500, its `LLM` with empty lists."""
    assert "vLLM returns nothing for logprob_token_ids where drafts are verified" in frontend.refuse(
        logprob_token_ids=[5]
    )
    assert "ask for logprobs" in frontend.refuse({"optimal_sampling": False}, logprob_token_ids=[5])


def test_beam_search_is_refused() -> None:
    refuse_beam_search(SamplingParams())
    with pytest.raises(VLLMValidationError, match="beam search draws nothing from q"):
        refuse_beam_search(BeamSearchParams(beam_width=2, max_tokens=4))


def test_many_threads_resolve_at_once(build_config: BuildConfig) -> None:
    frontend = Frontend(build_config())
    texts = [f"the {number} lazy" for number in range(40)]
    expected = [frontend.tokenizer.encode(text) for text in texts]
    found: dict[int, Any] = {}

    def admit(number: int) -> None:
        found[number] = frontend.admit({"theta_prompt": texts[number]}).sampling_params.extra_args

    threads = [threading.Thread(target=admit, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number]["theta_prompt_token_ids"] for number in range(len(texts))] == expected
