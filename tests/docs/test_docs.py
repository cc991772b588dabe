"""Every code block in docs/ runs as it stands there, but for the words that `blocks` exchanges."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from blocks import DOCS, SMALL_OPTIONS, Block, blocks

from support.example_pair import TEACHER
from support.servers import Server, start_server

ENGINE_SECONDS = 420

NAMED = {
    "README.md": set(),
    "architecture.md": set(),
    "generate.md": {"bash", "python", "yaml"},
    "how-it-works.md": {"python"},
    "limits.md": set(),
    "offline.md": {"python"},
    "parameters.md": {"python"},
    "report.md": {"bash", "python"},
    "security.md": set(),
    "serving.md": {"bash", "python", "javascript", "yaml"},
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


def offline_programs() -> list[list[Block]]:
    """The blocks of offline.md that share an engine, as one program each."""
    programs: list[list[Block]] = [[]]
    for block in blocks("offline.md", "python"):
        if block.mark == "new process":
            programs.append([])
        programs[-1].append(block)
    return programs


@pytest.mark.parametrize("program", offline_programs(), ids=lambda program: program[0].name)
def test_offline(program: list[Block], tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("\n".join(block.starting_an_engine() for block in program))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=ENGINE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip()


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
    (block,) = (b for b in blocks("serving.md", "bash") if "--additional-config" in b.text)
    server = started(block, tmp_path)
    try:
        body = {"model": TEACHER, "prompt": "x", "max_tokens": 1, "vllm_xargs": {"alpha_min": 0.95}}
        status, answer = server.send("/v1/completions", body)
        assert status == 400
        assert "alpha_max=0.9" in answer["error"]["message"]
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
