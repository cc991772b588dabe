"""Settings from flags and YAML, what is refused, and what a resumed run must share with the first."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from commands import SMALL, TEACHER, THETA, problems, run, write_rows

from vllm_optimal_sampling.data.generate.engine import engine_args, most_in_flight
from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.identity import check_same, identity_of, model_digest
from vllm_optimal_sampling.data.generate.sampling import sampling_params
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.generate.settings_from import engine_words, settings_from

GIVEN: dict[str, Any] = {
    "input": ["problems.jsonl"],
    "output": "rows.jsonl",
    "teacher": TEACHER,
    "theta": THETA,
    "theta_template": "{{ problem }}",
    "teacher_template": "{{ problem }} {{ answer }}",
}


def given(**changes: Any) -> Settings:
    return settings_from(GIVEN | changes)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"teacher": None}, "teacher is missing; give --teacher MODEL"),
    ({"theta": None}, "theta is missing"),
    ({"input": None}, "input is missing; give --input"),
    ({"theta_template": None}, "theta_template is missing"),
    ({"endpoint": "localhost:8000"}, "endpoint='localhost:8000' is not an address such as http"),
    ({"endpoint": "http://localhost:8000", "engine": ["--dtype", "half"]}, "--dtype half is for an engine"),
    ({"shard": "8/8"}, "invalid shard 8/8: expected i/n with 0 <= i < n"),
    ({"shard": "1"}, "invalid shard '1': expected i/n with 0 <= i < n"),
    ({"num_samples": 0}, "num_samples=0 is less than 1"),
    ({"limit": -1}, "limit=-1 is less than 1"),
    ({"limit": "ten"}, "limit='ten' is not a whole number"),
    ({"num_samples": True}, "num_samples=True is not a whole number"),
    ({"chat": "yes"}, "chat='yes' is not true or false"),
    ({"stop": [1]}, r"stop=\[1\] is not a text or a list of texts"),
    ({"format": "csv"}, "format='csv' is not one of jsonl, parquet, hf"),
    ({"alpha": 2}, r"alpha=2.0 is outside \[0, 1\]"),
    ({"alpha_method": "kl"}, "alpha_method='kl' is not one of"),
    ({"alpha_min": 0.9, "alpha_max": 0.1}, "alpha_min=0.9 is above alpha_max=0.1"),
    ({"sampling": {"seed": 1}}, "sampling has 'seed': give --seed"),
    ({"sampling": [1]}, r"sampling=\[1\] is not a mapping"),
    ({"seed": -1}, "seed=-1 is not in"),
    ({"messages": True}, "messages asks for conversations, and these prompts are text; add --chat"),
    ({"chat_column": "turns"}, "chat_column='turns' holds messages; add --chat"),
    ({"temprature": 1}, "'temprature' is not a setting: did you mean temperature?"),
    ({"log_interval": 0}, "log_interval=0.0 is not above 0 seconds"),
    ({"input": ""}, "input has an empty text"),
    ({"input": []}, "input has an empty text"),
    ({"teacher": ""}, "teacher is empty; give some text"),
    ({"stop": ["x", ""]}, "stop has an empty text"),
    ({"temperature": float("nan")}, "temperature=nan is not a finite number"),
    ({"alpha": 0.5}, "alpha=0.5 has no effect with alpha_method='kl_symmetry'"),
    ({"alpha": 0.7, "alpha_method": "entropy"}, "alpha=0.7 has no effect with alpha_method='entropy'"),
    ({"alpha": None}, "alpha=None is not a value"),
    ({"theta_prompt": "x"}, "'theta_prompt' cannot be given for all rows: it is made of each row with theta_template"),
    ({"optimal_sampling": False}, "'optimal_sampling' cannot be given for all rows"),
    ({"theta-template": "{{ a }}"}, "'theta-template' is given twice"),
    ({"alpha_mx": 0.5}, "'alpha_mx' is not a setting: did you mean alpha_max?"),
    ({"shard": 3}, "invalid shard 3: expected i/n"),
    ({"shard": [0, 2, 4]}, r"invalid shard \[0, 2, 4\]: expected i/n"),
    ({"shard": "0/0"}, "invalid shard 0/0: expected i/n"),
    ({"endpoint": "http://x", "num_speculative_tokens": 7}, "num_speculative_tokens=7 is for an engine"),
    ({"output": "rows.txt"}, "output='rows.txt' does not end in .jsonl or .ndjson"),
    ({"output": "rows.jsonl.gz"}, "output='rows.jsonl.gz' does not end in"),
    ({"output": "rows.jsonl", "format": "parquet"}, "output='rows.jsonl' does not end in .parquet"),
    ({"output": "rows.parquet", "format": "jsonl"}, "output='rows.parquet' does not end in .jsonl"),
    ({"output": "rows.jsonl", "format": "hf"}, "output='rows.jsonl' is named like a file"),
    ({"output": "/"}, "output='/' is a folder"),
    (
        {"teacher_system_prompt": "It is {{ answer }}."},
        "teacher_system_prompt looks like a template and is taken as it is",
    ),
    ({"theta_system_prompt": __file__}, "is a file, and the text itself is wanted"),
    ({"theta_system_prompt": " "}, "theta_system_prompt is empty"),
    (
        {"theta_chat_template_kwargs": {"a": 1}},
        "theta_chat_template_kwargs is for a chat template, and these prompts are",
    ),
    ({"teacher_chat_template_kwargs": {"a": 1}}, "teacher_chat_template_kwargs is for a chat template, and these"),
    ({"chat": True, "theta_chat_template_kwargs": "a"}, "theta_chat_template_kwargs='a' is not a mapping"),
    ({"chat": True, "theta_chat_template_kwargs": {1: 2}}, "give what theta's template reads"),
    ({"chat": True, "teacher_chat_template_kwargs": {1: 2}}, "give what the teacher's template reads"),
    (
        {"chat": True, "teacher_chat_template_kwargs": {"tokenize": 1}},
        "has tokenize, which is no variable of a template",
    ),
    ({"chat": True, "theta_chat_template_kwargs": {"day": date(2026, 1, 1)}}, "cannot be written as JSON"),
    ({"sampling": {"max_tokens": 3}}, "sampling has 'max_tokens': give --max-tokens"),
    ({"sampling": {"logprobs": 3}}, "sampling has 'logprobs': rows have --return-alpha"),
    ({"sampling": {"extra_args": {}}}, "sampling has 'extra_args': the arguments of optimal sampling are options"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD, ids=[repr(changes) for changes, _ in BAD])
def test_what_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        given(**changes)


def test_the_format_follows_the_outputs_name() -> None:
    assert given(output="a.parquet").format == "parquet"
    assert given(output="a.parquet").rows_path.name == "a.parquet.jsonl"
    assert given(output="a", format="hf").rows_path.name == "a.jsonl"
    assert given().sidecar_path.name == "rows.jsonl.settings.json"


def test_engine_options_from_yaml_are_vllms_words() -> None:
    options = {"max_model_len": 256, "enforce-eager": True, "enable_prefix_caching": False, "hf-overrides": {"a": 1}}
    assert engine_words(options) == [
        *["--max-model-len", "256", "--enforce-eager", "--no-enable-prefix-caching", "--hf-overrides", '{"a": 1}']
    ]


def test_a_resumed_run_has_the_same_variables_of_templates() -> None:
    before = identity_of(given(chat=True))
    assert before == identity_of(given(chat=True, theta_chat_template_kwargs={}))
    for name in ("teacher_chat_template_kwargs", "theta_chat_template_kwargs"):
        now = identity_of(given(chat=True, **{name: {"enable_thinking": False}}))
        with pytest.raises(SettingsError, match=rf'{name} is {{"enable_thinking": false}}, and it was null'):
            check_same(before, now, Path("sidecar"))


def test_a_resumed_run_may_differ_in_size_and_speed() -> None:
    before = identity_of(given(engine=["--dtype", "half", "--max-num-seqs", "8"]))
    after = identity_of(
        given(
            engine=["--max-num-seqs", "64", "--tensor-parallel-size=2", "--dtype=half", "--enforce-eager"],
            num_samples=4,
            limit=10,
            num_speculative_tokens=2,
            max_in_flight=3,
            shard="1/2",
        )
    )
    check_same(before, after, Path("sidecar"))


@pytest.mark.parametrize(
    "options", [["--load-format", "dummy"], ["-q", "awq"], ["--max-num-seqs", "8", "-q", "awq"], ["--quantization=awq"]]
)
def test_a_resumed_run_may_not_have_other_weights(options: list[str]) -> None:
    """At c2787b4 load_format, which may be made-up weights, counted as harmless, and options with one dash were not seen."""
    with pytest.raises(SettingsError, match="engine is"):
        check_same(identity_of(given()), identity_of(given(engine=options)), Path("sidecar"))
    check_same(identity_of(given()), identity_of(given(engine=["-tp", "2", "-dp=4"])), Path("sidecar"))


SAMPLING: list[tuple[dict[str, Any], str]] = [
    (
        {"repetition_penalti": 1.1},
        "sampling has 'repetition_penalti', which vLLM does not know: did you mean repetition_pen",
    ),
    ({"stream": True}, "sampling has 'stream', which vLLM does not know"),
    ({"response_format": {}}, "sampling has 'response_format', which vLLM does not know"),
    ({"_eos_token_id": 3}, "sampling has '_eos_token_id', which vLLM does not know"),
    ({"min_tokens": 2.5}, "vLLM refuses the sampling options: Expected `int`, got `float`"),
    ({"repetition_penalty": "1.1"}, "vLLM refuses the sampling options: Expected `float`, got `str`"),
    ({"repetition_penalty": -1}, "vLLM refuses the sampling options: .*repetition_penalty must be greater than zero"),
    ({"bad_words": "no"}, "vLLM refuses the sampling options"),
]


@pytest.mark.parametrize("endpoint", [None, "http://localhost:1"])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("sampling", "reason"), SAMPLING, ids=[str(sampling) for sampling, _ in SAMPLING])
def test_a_server_refuses_the_sampling_fields_that_an_engine_does(
    endpoint: str | None, chat: bool, sampling: dict[str, Any], reason: str
) -> None:
    """At c2787b4 a server's were sent as they were, and vLLM dropped the unknown ones."""
    with pytest.raises(SettingsError, match=reason):
        sampling_params(given(endpoint=endpoint, chat=chat, sampling=sampling))


def test_sampling_fields_of_json_are_read() -> None:
    fields = {"logit_bias": {"5": 1.5}, "structured_outputs": {"regex": "a+"}, "repetition_penalty": 1}
    for endpoint in (None, "http://localhost:1"):
        params = sampling_params(given(endpoint=endpoint, sampling=fields, temperature=0.5, stop=["x"]))
        assert params.logit_bias == {5: 1.5}
        assert params.structured_outputs.regex == "a+"
        assert (params.temperature, params.stop) == (0.5, ["x"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--speculative-config", '{"model": "another"}'],
            "--theta is .*, and --speculative-config has model='another'",
        ),
        (["--model", "another"], "--model is vLLM's name"),
        (["--additional-config", '{"optimal_sampling": {"alpha_max": 0.5}}'], "give --alpha-max"),
        (["--additional-config", '{"optimal_sampling": {"support_top_k": 5}}'], "give --support-top-k"),
        (["--additional-config", '{"optimal_sampling": {"theta_system_prompt": "x"}}'], "give --theta-system-prompt"),
    ],
)
def test_engine_options_that_contradict_this_commands(options: list[str], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        engine_args(given(engine=options))


def test_a_machine_without_a_gpu_is_not_filled_to_the_brim() -> None:
    """vLLM's own 0.92 of its memory is hardly ever free, and is then refused."""
    from vllm.platforms import current_platform

    default = engine_args(given()).gpu_memory_utilization
    assert default == (0.5 if current_platform.is_cpu() else 0.92)
    for options in (["--gpu-memory-utilization", "0.7"], ["--gpu_memory_utilization=0.7"]):
        assert engine_args(given(engine=options)).gpu_memory_utilization == 0.7


def test_all_data_parallel_ranks_have_work() -> None:
    options = [*SMALL, "--max-num-seqs", "8", "--data-parallel-size", "2"]
    assert most_in_flight(engine_args(given(engine=options)).create_engine_config()) == 2 * 8 * 2


def test_a_machine_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM then looks for its model where its options are made, and for its own default where it is not told which."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert engine_args(given(teacher=str(tmp_path))).model == str(tmp_path)
    with pytest.raises(SettingsError, match="teacher='owner/a-model-that-is-not-here' cannot be loaded"):
        engine_args(given(teacher="owner/a-model-that-is-not-here"))


def test_drafts_may_be_numbered_in_either_place_and_not_in_both() -> None:
    config = ["--speculative-config", '{"num_speculative_tokens": 2}']
    assert engine_args(given(engine=config)).speculative_config["num_speculative_tokens"] == 2
    with pytest.raises(SettingsError, match="--num-speculative-tokens is 3, and --speculative-config has"):
        engine_args(given(engine=config, num_speculative_tokens=3))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 0.5}, "temperature is 0.5, and it was 1.0"),
        ({"teacher_template": "{{ answer }}"}, 'teacher_template is "{{ answer }}", and it was'),
        ({"engine": ["--dtype", "float16"]}, 'engine is ["dtype float16"], and it was []'),
        ({"input": ["other.jsonl"]}, 'input is ["other.jsonl"], and it was ["problems.jsonl"]'),
        ({"teacher": THETA}, "teacher_files is other files than before"),
        ({"seed": 1, "top_k": 3}, "seed is 1, and it was null; top_k is 3, and it was 0"),
    ],
)
def test_a_resumed_run_may_not_mix_distributions(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_same(identity_of(given()), identity_of(given(**changes)), Path("rows.settings.json"))
    assert named in str(caught.value)
    assert "rows.settings.json" in str(caught.value)


def test_with_ids_of_its_own_the_input_may_move() -> None:
    check_same(identity_of(given(id_column="id")), identity_of(given(id_column="id", input=["b.csv"])), Path("sidecar"))


def test_a_template_in_a_file_counts_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "theta.jinja"
    path.write_text("{{ problem }}")
    assert identity_of(given(theta_template=str(path))) == identity_of(given())
    with pytest.raises(SettingsError, match="theta_template='missing' is neither a Jinja template nor a file"):
        given(theta_template="missing").templates()


def test_a_model_that_was_trained_on_is_another(tmp_path: Path) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(TEACHER, copy)
    assert model_digest(str(copy)) == model_digest(TEACHER) != model_digest(THETA)
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert model_digest(str(copy)) != model_digest(TEACHER)
    assert model_digest("owner/no-such-model") is None


def test_flags_come_before_the_yaml_file(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", problems(2))
    config = tmp_path / "run.yaml"
    config.write_text(
        f"teacher: {TEACHER}\ntheta: {THETA}\ninput: {source}\noutput: rows.jsonl\ntheta-template: '{{{{ problem }}}}'\n"
        "theta-system-prompt: Think.\nchat: true\nengine:\n  max-model-len: 256\n"
    )
    done = run("--config", str(config), "--dry-run", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["theta"][0] == {"role": "system", "content": "Think."}
    done = run("--config", str(config), "--dry-run", "1", "--theta-system-prompt", "Reason.")
    assert json.loads(done.stdout)["theta"][0] == {"role": "system", "content": "Reason."}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "cannot be read"),
        ("- a", "is not a mapping"),
        ("engine: [1]", "is not a mapping of vLLM's"),
        ("x: 1", "'x' is not a setting"),
    ],
)
def test_a_yaml_file_that_is_none(tmp_path: Path, text: str, reason: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    done = run("--config", str(config))
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_dry_run_shows_prompts_and_writes_nothing(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*problems(1), b'{"problem": 1}\n'])
    output = tmp_path / "rows.jsonl"
    options = ["--teacher", TEACHER, "--theta", THETA, "--input", str(source), "--output", str(output)]
    templates = ["--theta-template", "{{ problem }}", "--teacher-template", "{{ problem }} {{ answer }}"]
    done = run(*options, *templates, "--dry-run")
    assert done.returncode == 1  # the second row has no answer
    first, second = done.stdout.replace("}\n{", "}\0{").split("\0")
    row = problems(1)[0]
    assert json.loads(first) == {
        "row": "in.jsonl:1",
        "teacher": f"{row['problem']} {row['answer']}",
        "theta": row["problem"],
        "privileged_context": row["answer"],
    }
    assert json.loads(second)["error"] == "the teacher's template failed: 'answer' is undefined"
    assert not output.exists()


def test_a_privileged_column_in_thetas_template_stops_the_command(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", problems(1))
    options = ["--teacher", TEACHER, "--theta", THETA, "--input", str(source), "--output", str(tmp_path / "rows.jsonl")]
    done = run(*options, "--theta-template", "{{ problem }} {{ answer }}", "--privileged", "answer")
    assert done.returncode == 2
    assert "theta_template renders the privileged column answer" in done.stderr
    assert not (tmp_path / "rows.jsonl").exists()


def test_an_option_that_nobody_knows(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", problems(1))
    options = ["--teacher", TEACHER, "--theta", THETA, "--input", str(source), "--output", str(tmp_path / "rows.jsonl")]
    for unknown in (["--max-modellen", "256"], ["--privilged", "answer", "--dry-run"]):
        done = run(*options, "--theta-template", "{{ problem }}", *unknown)
        assert done.returncode == 2
        assert (
            f"this command nor vLLM's engine takes these options: unrecognized arguments: {' '.join(unknown[:2])}"
            in (done.stderr)
        )


def test_an_option_with_two_values(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", problems(1))
    options = ["--teacher", TEACHER, "--theta", THETA, "--input", str(source), "--output", str(tmp_path / "rows.jsonl")]
    options += ["--theta-template", "{{ problem }}", "--dry-run", "--alpha-max", "0.5"]
    done = run(*options, "--alpha-max", "0.9")
    assert done.returncode == 2
    assert "--alpha-max is given twice, with 0.5 and with 0.9; give it once" in done.stderr
    assert run(*options, "--alpha-max", "0.5").returncode == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom vllm_optimal_sampling.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as ended: assert ended.code == 0\n"
        "assert not {'torch', 'vllm', 'transformers', 'datasets', 'jinja2', 'numpy'} & sys.modules.keys()"
    )
    for options in (["--help"], ["generate", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
