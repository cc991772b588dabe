"""Settings from flags and YAML, what is refused, and what a resumed run must share with the first."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import TEACHER, THETA, problems, run, write_rows

from vllm_optimal_sampling.data.generate.errors import SettingsError
from vllm_optimal_sampling.data.generate.settings import Settings, check_same, engine_words, model_digest, settings_from

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
    ({"endpoint": "localhost:8000"}, "endpoint='localhost:8000' is no address such as http"),
    ({"endpoint": "http://localhost:8000", "engine": ["--dtype", "half"]}, "--dtype half is for an engine"),
    ({"shard": "8/8"}, "shard=8/8 is none; give i/n with i from 0 to n-1"),
    ({"shard": "1"}, "shard='1' is none"),
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
    ({"sampling": {"seed": 1}}, "sampling has 'seed', which is not for it"),
    ({"sampling": [1]}, r"sampling=\[1\] is not a mapping"),
    ({"seed": -1}, "seed=-1 is not in"),
    ({"messages": True}, "messages asks for conversations, and these prompts are text; add --chat"),
    ({"chat_column": "turns"}, "chat_column='turns' holds messages; add --chat"),
    ({"temprature": 1}, "'temprature' is no setting: did you mean temperature?"),
    ({"log_interval": 0}, "log_interval=0.0 is not above 0 seconds"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD, ids=[repr(changes) for changes, _ in BAD])
def test_what_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        given(**changes)


def test_the_format_follows_the_outputs_name() -> None:
    assert given(output="a.parquet").format == "parquet"
    assert given(output="a.parquet").rows_path.name == "a.parquet.jsonl"
    assert given(output="a.parquet", format="jsonl").rows_path.name == "a.parquet"
    assert given().sidecar_path.name == "rows.jsonl.settings.json"


def test_engine_options_from_yaml_are_vllms_words() -> None:
    options = {"max_model_len": 256, "enforce-eager": True, "enable_prefix_caching": False, "hf-overrides": {"a": 1}}
    assert engine_words(options) == [
        *["--max-model-len", "256", "--enforce-eager", "--no-enable-prefix-caching", "--hf-overrides", '{"a": 1}']
    ]


def test_a_resumed_run_may_differ_in_size_and_speed() -> None:
    before = given(engine=["--dtype", "half", "--max-num-seqs", "8"]).identity()
    after = given(
        engine=["--max-num-seqs", "64", "--tensor-parallel-size=2", "--dtype=half", "--enforce-eager"],
        num_samples=4,
        limit=10,
        num_speculative_tokens=2,
        max_in_flight=3,
        shard="1/2",
    ).identity()
    check_same(before, after, Path("sidecar"))


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
        check_same(given().identity(), given(**changes).identity(), Path("rows.settings.json"))
    assert named in str(caught.value)
    assert "rows.settings.json" in str(caught.value)


def test_with_ids_of_its_own_the_input_may_move() -> None:
    check_same(given(id_column="id").identity(), given(id_column="id", input=["b.csv"]).identity(), Path("sidecar"))


def test_a_template_in_a_file_counts_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "theta.jinja"
    path.write_text("{{ problem }}")
    assert given(theta_template=str(path)).identity() == given().identity()
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
        ("- a", "is no mapping"),
        ("engine: [1]", "is no mapping of vLLM's"),
        ("x: 1", "'x' is no setting"),
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
