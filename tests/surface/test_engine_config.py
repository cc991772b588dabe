"""Asking for an engine, its settings, and arguments that cannot work. The configurations are vLLM's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configurations import build, refusal

from vllm_optimal_sampling.config.engine_args import _looks_like_folder, prepare_engine_args
from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.settings import KEY, PROCESSOR, EngineSettings, is_enabled
from vllm_optimal_sampling.config.versions import CPU_BUILD, NEWEST, RANGE, SUPPORTED_VLLM, is_supported_version
from vllm_optimal_sampling.params import OptimalSamplingParams

BuildConfig = Callable[..., Any]

FIRST, LAST = ("{}.{}".format(*version) for version in SUPPORTED_VLLM)


# Asking


class OptimalSamplingLogitsProcessor:
    """Stands for the class itself, which needs no import to be recognised."""

    __module__ = PROCESSOR.partition(":")[0]


@pytest.mark.parametrize(
    "processors",
    [
        ["optimal_sampling"],
        [PROCESSOR],
        [OptimalSamplingLogitsProcessor],
        ["optimal_sampling", "optimal_sampling", PROCESSOR, OptimalSamplingLogitsProcessor],
    ],
)
def test_every_way_to_ask_is_one(build_config: BuildConfig, processors: list[Any]) -> None:
    config = build_config(logits_processors=processors)
    assert is_enabled(config)
    assert config.model_config.logits_processors is None
    assert config.speculative_config.method == "draft_model"
    assert config.speculative_config.draft_sample_method == "probabilistic"


def test_other_processors_stay(engine_args: BuildConfig) -> None:
    arguments = engine_args(logits_processors=["their.module:Class", "optimal_sampling", dict])
    with prepare_engine_args(arguments) as asked:
        assert asked
        assert arguments.logits_processors == ["their.module:Class", dict]


def test_an_engine_that_does_not_ask_is_untouched(engine_args: BuildConfig) -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 3}
    for processors in (None, [], ["their.module:Class"]):
        arguments = engine_args(logits_processors=processors, speculative_config=speculative)
        before = dict(vars(arguments))
        with prepare_engine_args(arguments) as asked:
            assert not asked
            assert vars(arguments) == before
            assert arguments.speculative_config is speculative
    assert not is_enabled(build(engine_args(logits_processors=None, speculative_config=None)))


def test_a_misspelt_name_is_refused(build_config: BuildConfig) -> None:
    with pytest.raises(
        ValueError, match=r"there is no logits processor 'optimal-sampling': did you mean optimal_sampling\?"
    ):
        build_config(logits_processors=["optimal-sampling"])


def test_settings_without_the_name_are_refused(build_config: BuildConfig) -> None:
    with pytest.raises(
        ValueError, match=r"was not asked for optimal sampling; add --logits-processor optimal_sampling"
    ):
        build_config(logits_processors=None, additional_config={KEY: {}})


def test_arguments_are_what_they_were(engine_args: BuildConfig, theta: str) -> None:
    """A second configuration from the same arguments, as vLLM's tools make one, is like the first."""
    speculative = {"model": theta, "num-speculative-tokens": 2}
    additional = {"theirs": 1, KEY: {"alpha_max": 0.5}}
    processors = ["optimal_sampling"]
    arguments = engine_args(speculative_config=speculative, additional_config=additional, logits_processors=processors)
    for _ in range(2):
        config = build(arguments)
        assert config.speculative_config.num_speculative_tokens == 2
        assert config.additional_config == additional
        assert arguments.speculative_config is speculative
        assert arguments.additional_config is additional
        assert arguments.logits_processors is processors
    assert speculative == {"model": theta, "num-speculative-tokens": 2}


def test_arguments_are_restored_after_an_error(engine_args: BuildConfig) -> None:
    arguments = engine_args()
    before = dict(vars(arguments))
    with pytest.raises(RuntimeError, match="vLLM failed"), prepare_engine_args(arguments):
        raise RuntimeError("vLLM failed")
    assert vars(arguments) == before


def test_theta_may_come_from_the_flags_of_its_own(build_config: BuildConfig, theta: str) -> None:
    for method in (None, "draft_model"):
        config = build_config(speculative_config=None, spec_model=theta, spec_tokens=2, spec_method=method)
        assert config.speculative_config.method == "draft_model"
        assert config.speculative_config.draft_sample_method == "probabilistic"
        assert config.speculative_config.num_speculative_tokens == 2


# Settings


def test_settings_reach_every_process_as_json(build_config: BuildConfig, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    given = {
        "alpha_method": "fixed",
        "alpha": 0.25,
        "theta_chat_template": str(template),
        "theta_chat_template_kwargs": {"enable_thinking": False},
        "theta_system_prompt": "Think.",
        "theta_prompt_graphs": True,
        "require_theta_prompt": True,
        "weight_updates": "theta",
        "other_extra_args": ["theirs"],
    }
    config = build_config(additional_config={KEY: given, "theirs": True})
    stored = config.additional_config[KEY]
    assert json.loads(json.dumps(stored)) == {**given, "theta_chat_template": "{{ messages[0].content }}"}
    assert EngineSettings.from_config(config) == EngineSettings(
        defaults=OptimalSamplingParams(alpha_method="fixed", alpha=0.25),
        theta_chat_template="{{ messages[0].content }}",
        theta_chat_template_kwargs={"enable_thinking": False},
        theta_system_prompt="Think.",
        theta_prompt_graphs=True,
        require_theta_prompt=True,
        weight_updates="theta",
        other_extra_args=("theirs",),
    )
    assert EngineSettings.from_config(config).to_mapping() == stored
    assert config.compute_hash()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (None, "additional_config['optimal_sampling'] is None; give an object with default request arguments, or {}"),
        (
            {"alpha_metod": "fixed"},
            "additional_config['optimal_sampling'] has no setting 'alpha_metod': did you mean alpha_method?",
        ),
        (
            {"alpha": "0.5"},
            "additional_config['optimal_sampling']: alpha='0.5' is text, not a number; send it without quotes (0.5)",
        ),
        (
            {"theta_system_prompt": ""},
            "additional_config['optimal_sampling']: theta_system_prompt='' is not text; give some, or leave it out",
        ),
        (
            {"theta_chat_template_kwargs": "enable_thinking"},
            "additional_config['optimal_sampling']: theta_chat_template_kwargs='enable_thinking' is not an object; give what "
            'theta\'s template reads, such as {"enable_thinking": false}',
        ),
        (
            {"theta_chat_template_kwargs": {"tokenize": False}},
            "additional_config['optimal_sampling']: theta_chat_template_kwargs has tokenize, which is no variable of a "
            "template; drop it (a template goes to theta_chat_template)",
        ),
        (
            {"alpha": 0.7},
            "additional_config['optimal_sampling']: alpha=0.7 has no effect with alpha_method='kl_symmetry', which finds "
            "alpha for each token; ask for alpha_method='fixed' or 'arithmetic', or drop it",
        ),
        (
            {"theta_prompt_graphs": 1},
            "additional_config['optimal_sampling']: theta_prompt_graphs=1 is not true or false",
        ),
        (
            {"require_theta_prompt": "yes"},
            "additional_config['optimal_sampling']: require_theta_prompt='yes' is not true or false",
        ),
        (
            {"require_theta_prompt": True, "theta_prompt": "x"},
            "additional_config['optimal_sampling']: require_theta_prompt asks each request for a prompt, and theta_prompt "
            "gives one to those that have none; drop one of them",
        ),
        (
            {"weight_updates": "student"},
            "additional_config['optimal_sampling']: weight_updates='student' is neither 'teacher' nor 'theta'",
        ),
        (
            {"weight_updates": "theta", "theta": "self"},
            "additional_config['optimal_sampling']: weight_updates='theta' needs a theta that drafts, since vLLM's transfer "
            "knows the draft model alone; drop it (replace_theta gives a theta that scores its weights)",
        ),
        (
            {"other_extra_args": ["alpha", "theirs"]},
            "additional_config['optimal_sampling']: other_extra_args has alpha, optimal sampling's own; drop it",
        ),
        (
            {"other_extra_args": "theirs"},
            "additional_config['optimal_sampling']: other_extra_args='theirs' is not a list of names",
        ),
    ],
)
def test_settings_are_refused(build_config: BuildConfig, settings: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole sentence is compared
        build_config(additional_config={KEY: settings})
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("additional", "reason"),
    [
        (
            {"optimal_samplng": {"require_theta_prompt": True}},
            "has no effect under 'optimal_samplng': did you mean optimal_sam",
        ),
        (
            {"optimal-sampling": {"alpha_max": 0.5}},
            "has no effect under 'optimal-sampling': did you mean optimal_sampling",
        ),
        (
            {"require_theta_prompt": True},
            "additional_config has require_theta_prompt at the top, where it has no effect",
        ),
        ({"alpha_max": 0.5, KEY: {}}, "additional_config has alpha_max at the top"),
    ],
)
def test_settings_in_the_wrong_place_are_refused(
    build_config: BuildConfig, additional: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        build_config(additional_config=additional)


def test_an_unknown_setting_is_refused_with_what_is_known(build_config: BuildConfig) -> None:
    with pytest.raises(ValueError, match=r"has no setting 'zzz'; known are alpha, .*theta_chat_template"):
        build_config(additional_config={KEY: {"zzz": 1}})


def test_a_template_that_is_none_is_refused(build_config: BuildConfig) -> None:
    with pytest.raises(ValueError, match=r"'/no/file' is neither a Jinja template nor a file that can be read"):
        build_config(additional_config={KEY: {"theta_chat_template": "/no/file"}})
    message = refusal(build_config, additional_config={KEY: {"theta_chat_template": "{% for %}"}})
    assert message.startswith("optimal sampling cannot start: theta_chat_template is not a Jinja template: ")


# Arguments that cannot work


def test_without_a_theta_the_working_command_is_printed(build_config: BuildConfig, teacher: str) -> None:
    config = '{"model": "THETA", "num_speculative_tokens": 4}'
    assert refusal(build_config, speculative_config=None) == (
        "optimal sampling cannot start: it needs theta as vLLM's draft model, and there is no speculative_config.\n"
        "This works:\n"
        f"  vllm serve {teacher} --logits-processor optimal_sampling --speculative-config '{config}'\n"
        "or, in Python:\n"
        f"  LLM({teacher!r}, logits_processors=['optimal_sampling'], speculative_config={config})\n"
        "where THETA is the smaller model, with the teacher's tokenizer."
    )


def test_the_working_command_names_the_theta_that_was_given(build_config: BuildConfig, theta: str) -> None:
    message = refusal(build_config, speculative_config={"model": theta, "method": "eagle", "num_speculative_tokens": 2})
    assert message.startswith(
        "optimal sampling cannot start: speculative method 'eagle' has no theta, which is a whole model run as the "
        'draft model; drop "method", it is set to "draft_model".\nThis works:\n'
    )
    assert json.dumps({"model": theta, "num_speculative_tokens": 4}) in message
    assert "THETA" not in message


SPECULATIVE = [
    ({"method": "ngram"}, "speculative method 'ngram' has no theta"),
    ({"method": "mtp"}, "speculative method 'mtp' has no theta"),
    ({"method": "suffix"}, "speculative method 'suffix' has no theta"),
    ({"model": None}, 'speculative_config names no theta; add "model"'),
    (
        {"num_speculative_tokens": None},
        'speculative_config has no "num_speculative_tokens"; add it, 4 is a good start',
    ),
    (
        {"draft_sample_method": "greedy"},
        "draft_sample_method='greedy' draws no tokens from theta's probabilities; drop it, it is set to "
        '"probabilistic"',
    ),
    *(
        (
            {"rejection_sample_method": method},
            f"rejection_sample_method='{method}' is not supported: tokens would not follow q*; drop it, "
            '"standard" is the default',
        )
        for method in ("fly", "block")
    ),
    (
        {"parallel_drafting": True},
        "parallel_drafting is not supported: theta draws its drafts one after another; drop it",
    ),
    (
        {"use_local_argmax_reduction": True},
        "use_local_argmax_reduction is not supported: it picks the likeliest token, and theta's are drawn from its "
        "probabilities; drop it",
    ),
    (
        {"use_heterogeneous_vocab": True},
        "use_heterogeneous_vocab is not supported: theta and teacher must share one tokenizer for q* to be defined; "
        "drop it",
    ),
    (
        {"enable_adaptive_verification": True},
        "enable_adaptive_verification is not supported; drop it",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), SPECULATIVE, ids=[str(options) for options, _ in SPECULATIVE])
def test_speculative_options_are_refused(
    build_config: BuildConfig, theta: str, options: dict[str, Any], sentence: str
) -> None:
    speculative = {"model": theta, "num_speculative_tokens": 3, **options}
    message = refusal(build_config, speculative_config=speculative)
    assert message.startswith(f"optimal sampling cannot start: {sentence}")
    assert "This works:\n  vllm serve " in message


def test_all_that_is_wrong_is_said_at_once(build_config: BuildConfig, theta: str) -> None:
    message = refusal(build_config, speculative_config={"model": theta, "method": "eagle", "parallel_drafting": True})
    assert [line[:20] for line in message.splitlines()[:4]] == [
        "optimal sampling can",
        "- speculative method",
        "- speculative_config",
        "- parallel_drafting ",
    ]


def test_another_method_by_flag_is_refused(build_config: BuildConfig, theta: str) -> None:
    message = refusal(build_config, speculative_config=None, spec_method="eagle", spec_model=theta, spec_tokens=3)
    assert "speculative method 'eagle' has no theta" in message


@pytest.mark.parametrize("config", ["{}", [], 3])
def test_a_speculative_config_that_is_no_object_is_refused(engine_args: BuildConfig, config: Any) -> None:
    arguments = engine_args()
    arguments.speculative_config = config
    with pytest.raises(UnsupportedEngineError, match="not an object"):
        build(arguments)


def test_a_missing_folder_is_refused_before_the_hub_is_enabled(
    build_config: BuildConfig, engine_args: BuildConfig
) -> None:
    theta = {"model": "/models/no-theta", "num_speculative_tokens": 3}
    remedy = "does not exist; correct the path, or name a model of the hub."
    assert refusal(build_config, speculative_config=theta) == (
        f"optimal sampling cannot start: theta's folder '/models/no-theta' {remedy}"
    )
    arguments = engine_args()
    arguments.model = "./no-teacher"
    with pytest.raises(UnsupportedEngineError) as caught:
        build(arguments)
    assert str(caught.value) == f"optimal sampling cannot start: the teacher's folder './no-teacher' {remedy}"


def test_a_folder_without_a_model_is_refused_before_the_hub_is_enabled(
    build_config: BuildConfig, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert refusal(build_config, speculative_config={"model": str(tmp_path), "num_speculative_tokens": 3}) == (
        f"optimal sampling cannot start: theta's folder {str(tmp_path)!r} holds no model: there is no config.json or "
        "params.json in it; correct the path."
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", False),
        ("gpt2", False),
        ("s3://bucket/a/b", False),
        ("/models/teacher", True),
        ("./teacher", True),
        ("../teacher", True),
        ("~/teacher", True),
        ("models/small/teacher", True),
        ("teacher/", True),
    ],
)
def test_paths_are_told_from_names_of_the_hub(model: str, expected: bool) -> None:
    assert _looks_like_folder(model) is expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (f"{FIRST}.0", True),
        (f"{FIRST}.0+cpu", True),
        (f"{FIRST}.4", True),
        (f"v{NEWEST}rc1", True),
        (NEWEST, True),
        (CPU_BUILD, True),
        (f"0.{SUPPORTED_VLLM[0][1] - 1}.9", False),
        (f"{LAST}.0", False),
        (f"{LAST}.0.dev3+g12345", False),
        ("1.0", False),
        ("dev", False),
        ("", False),
    ],
)
def test_versions(version: str, expected: bool) -> None:
    assert is_supported_version(version) is expected


def test_another_version_of_vllm_is_refused(build_config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_supported_version()
    unsupported = "{}.{}.1".format(*SUPPORTED_VLLM[1])
    monkeypatch.setattr("vllm.version.__version__", unsupported)
    assert not is_supported_version()
    assert refusal(build_config) == (
        f"optimal sampling works with vLLM {RANGE}, and this is vLLM {unsupported}; run `pip install 'vllm{RANGE}'`, "
        "or use another release of vllm-optimal-sampling"
    )
