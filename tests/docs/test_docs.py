"""Every code block in docs/ runs as it stands there, but for the words that `blocks` exchanges."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from blocks import DOCS, Block, blocks

from support.example_pair import TEACHER
from support.servers import SMALL_OPTIONS, Server, start_server

ENGINE_SECONDS = 420

OWN_PROCESS = {
    # The worker is within the engine's process, as with one GPU. With 1 vLLM's CPU build starts a third process for it, which
    # imports vLLM for 8 s more; tests/engine/test_ranks.py has such workers.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "2",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}

NAMED = {
    "README.md": set(),
    "architecture.md": set(),
    "generate.md": {"bash", "python", "yaml"},
    "how-it-works.md": {"python"},
    "inputs.md": set(),
    "limits.md": set(),
    "offline.md": {"python"},
    "parameters.md": {"python"},
    "report.md": {"bash", "python"},
    "security.md": set(),
    "sequences.md": set(),
    "self-distillation.md": {"bash", "python"},
    "serving.md": {"bash", "python", "javascript", "yaml"},
    "tokenizers.md": set(),
    "training.md": {"bash", "python"},
    "troubleshooting.md": {"python"},
}
"""The languages of each document's blocks, all of which are run below."""


def test_no_block_is_left_out() -> None:
    found = {
        path.name: set(re.findall(r"^```(\w+)$", path.read_text(), re.M)) - {"text", "mermaid"}
        for path in DOCS.glob("*.md")
    }
    assert found == NAMED
    for path in DOCS.glob("*.md"):
        fences = re.findall(r"^```", path.read_text(), re.M)
        assert len(fences) == 2 * len(blocks(path.name, "text", "mermaid", "bash", "python", "javascript", "yaml"))


@pytest.mark.parametrize("document", ["how-it-works.md", "parameters.md", "troubleshooting.md"])
def test_python_without_an_engine(document: str) -> None:
    names: dict[str, object] = {}
    for block in blocks(document, "python"):
        exec(compile(block.prepared(), block.name, "exec"), names)


PROGRAMS = [*blocks("offline.md", "python"), *blocks("self-distillation.md", "python")]


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.name)
def test_offline(block: Block, tmp_path: Path) -> None:
    """Each block, saved as a file, is a program, with the engine in a process of its own as vLLM has it by default."""
    run_as_program(block, tmp_path)


def run_as_program(block: Block, folder: Path) -> None:
    script = folder / "program.py"
    script.write_text(block.starting_an_engine())
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=ENGINE_SECONDS,
        check=False,
        cwd=folder,
        env=os.environ | OWN_PROCESS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=pytest.mark.full if block.mark == "full" else (), id=block.name)
        for block in blocks("training.md", "python")
        if "SERVER" not in block.text  # tests/training/test_server_weights.py runs these
    ],
)
def test_training(block: Block, tmp_path: Path) -> None:
    for library in ("trl", "peft"):
        if f"from {library} " in block.text:
            pytest.importorskip(library, reason="the extra `trl` is not installed")
    run_as_program(block, tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The first command of serving.md."""
    server = started(blocks("serving.md", "bash")[0], tmp_path_factory.mktemp("docs"))
    yield server
    server.stop()


def started(block: Block, folder: Path) -> Server:
    command = f'exec {block.prepared().rstrip()} "$@"'
    return start_server(["bash", "-c", command, "bash", *SMALL_OPTIONS], folder / "server.log")


def run_in_shell(text: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=ENGINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_serving(server: Server, tmp_path: Path) -> None:
    names: dict[str, object] = {}
    _, *rest = blocks("serving.md", "bash", "python", "javascript")
    for block in rest:
        text = block.prepared(server.url)
        if block.mark == "full":
            continue
        if block.language == "bash":
            (choice,) = json.loads(run_in_shell(text, tmp_path))["choices"]
            assert len(choice["optimal_sampling"]["alpha"]) > 1
        elif block.language == "python":
            exec(compile(text, block.name, "exec"), names)
        elif shutil.which("node"):
            done = subprocess.run(
                ["node", "--input-type=module", "-e", text], capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()
    assert server.is_alive()


def test_the_configuration_file_says_what_the_command_says() -> None:
    """tests/server starts a server from such a file."""
    (block,) = blocks("serving.md", "yaml")
    config = yaml.safe_load(block.prepared())
    assert config["model"] == TEACHER
    assert config["logits-processors"] == ["optimal_sampling"]
    assert set(config) == {"model", "logits-processors", "speculative-config", "additional-config"}


def test_generating(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, dry_run, served = blocks("generate.md", "bash")
    (python,) = blocks("generate.md", "python")
    run_in_shell(f"{first.prepared().rstrip()} {' '.join(SMALL_OPTIONS)}", tmp_path)
    assert "The answer is 72." in run_in_shell(dry_run.prepared(), tmp_path)
    run_in_shell(served.prepared(server.url), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sorted((row["custom_id"], row["sample"]) for row in rows) == [
        *(("problems.csv:2", 0), ("problems.csv:2", 1), ("problems.csv:3", 0), ("problems.csv:3", 1))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "finish_reason": "stop"}) + "\n" for row in rows))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    exec(compile(python.prepared(), python.name, "exec"), {})
    assert len((tmp_path / "served.jsonl").read_text().splitlines()) == 2


def test_generating_with_one_model(tmp_path: Path) -> None:
    (block,) = blocks("self-distillation.md", "bash")
    run_in_shell(f"{block.prepared().rstrip()} {' '.join(SMALL_OPTIONS)}", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(0 < alpha < 1 for row in rows for alpha in row["optimal_sampling"]["alpha"][:1])


def test_the_file_for_generating_is_read(tmp_path: Path) -> None:
    """Its options reach the command and vLLM, which the dry run and the engine's parser say."""
    from vllm_optimal_sampling.data.generate.settings_from import engine_words, settings_from

    (block,) = blocks("generate.md", "yaml")
    options = yaml.safe_load(block.prepared())
    options["engine"] = engine_words(options["engine"])
    settings = settings_from(options)
    assert settings.engine == ("--max-model-len", "4096", "--data-parallel-size", "8")
    assert settings.format == "parquet"
    assert settings.templates().render({"problem": "p", "answer": "a"}).theta[0]["content"] == "Think step by step."


@pytest.mark.full
def test_serving_with_defaults(tmp_path: Path) -> None:
    (block,) = (b for b in blocks("serving.md", "bash") if "alpha_max" in b.text and "--additional-config" in b.text)
    server = started(block, tmp_path)
    try:
        body = {"model": TEACHER, "prompt": "x", "max_tokens": 1, "vllm_xargs": {"alpha_min": 0.95}}
        status, answer = server.send("/v1/completions", body)
        assert status == 400
        assert "alpha_max=0.9" in answer["error"]["message"]
    finally:
        server.stop()


@pytest.mark.full
def test_serving_with_the_teacher_as_theta(tmp_path: Path) -> None:
    (block,) = (b for b in blocks("serving.md", "bash") if '"theta": "self"' in b.text)
    server = started(block, tmp_path)
    try:
        arguments = {"theta_prompt": "y", "return_alpha": True}
        body = {"model": TEACHER, "prompt": "x", "max_tokens": 8, "vllm_xargs": arguments}
        status, answer = server.send("/v1/completions", body)
        assert status == 200, answer
        assert any(0 < alpha < 1 for alpha in answer["choices"][0]["optimal_sampling"]["alpha"])
    finally:
        server.stop()


@pytest.mark.full
def test_a_server_that_requires_a_prompt_for_theta(tmp_path: Path) -> None:
    (block,) = (b for b in blocks("serving.md", "bash") if "require_theta_prompt" in b.text)
    server = started(block, tmp_path)
    try:
        body = {"model": TEACHER, "prompt": "x", "max_tokens": 1}
        for arguments, expected in (({}, 400), ({"theta_prompt": "x"}, 200), ({"optimal_sampling": False}, 200)):
            status, answer = server.send("/v1/completions", {**body, "vllm_xargs": arguments})
            assert status == expected, answer
            assert status == 200 or answer["error"]["param"] == "theta_prompt"
    finally:
        server.stop()


@pytest.mark.full
def test_run_batch(tmp_path: Path) -> None:
    (block,) = (b for b in blocks("serving.md", "bash") if "run-batch" in b.text)
    run_in_shell(f"{block.prepared().rstrip()} {' '.join(SMALL_OPTIONS)}", tmp_path)
    (line,) = (tmp_path / "answers.jsonl").read_text().splitlines()
    answer = json.loads(line)
    assert answer["error"] is None
    assert answer["response"]["body"]["choices"][0]["message"]["content"]


@pytest.mark.full
def test_bench_serve(server: Server, tmp_path: Path) -> None:
    (block,) = (b for b in blocks("serving.md", "bash") if "bench serve" in b.text)
    report = run_in_shell(block.prepared(server.url), tmp_path)
    assert re.search(r"Successful requests: +4", report), report
