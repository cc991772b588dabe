"""The command over the example pair: killed, stopped, resumed, with bad rows among the good, and against a server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import (
    MODELS,
    RUN_SECONDS,
    SMALL,
    TEACHER,
    TEMPLATES,
    THETA,
    Running,
    problems,
    read_rows,
    run,
    start,
    write_rows,
)
from transformers import AutoTokenizer

from support.example_pair import chat_tokens, with_hint
from support.servers import SMALL_SERVER, VLLM, Server, start_server
from vllm_optimal_sampling.data.generate.endpoint import Endpoint
from vllm_optimal_sampling.data.generate.settings import Settings
from vllm_optimal_sampling.data.generate.templates import Prompts

NUM_PROBLEMS, NUM_SAMPLES = 12, 2
ENDS = ("kill", "kill the engine", "stop")
"""How the runs are interrupted, one after another; the next one finishes."""
OPTIONS = [*TEMPLATES, "--chat", "--temperature", "0", "--max-tokens", "32", "--id-column", "id", "--return-alpha"]
OPTIONS += ["--return-top-k", "2"]

BAD_ROWS: dict[int, tuple[dict[str, Any] | bytes, str]] = {
    3: ({"id": "no answer", "problem": "Why?"}, "teacher's template failed: 'answer' is undefined"),
    5: ({"id": "too long", "problem": "Mia " * 400, "answer": "1"}, "256"),
    7: (b'{"id": "bytes", "problem": "\xff", "answer": "1"}\n', "not UTF-8: byte 0xff at position 28"),
    8: (b'{"id": "broken", "problem": \n', "not JSON: Expecting value at column 29"),
    10: ({"id": "p1", "problem": "Again?", "answer": "1"}, "id 'p1' is already that of problems.jsonl line 2"),
    12: ({"id": "null", "problem": None, "answer": "1"}, "theta's template failed: a column that it writes is null"),
    13: (b'["a", "list"]\n', "not an object with columns but list"),
}
"""By their lines; each becomes one row with an error."""


def options(source: Path) -> list[str]:
    return ["--input", str(source), *OPTIONS, "--num-samples", str(NUM_SAMPLES)]


@dataclass
class Drawn:
    """A run that was interrupted again and again, and what was seen on the way."""

    source: Path
    output: Path
    codes: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    log: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.output)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("generate")
    rows: list[dict[str, Any] | bytes] = [{"id": f"p{i}", **row} for i, row in enumerate(problems(NUM_PROBLEMS))]
    for line, (row, _) in sorted(BAD_ROWS.items()):
        rows.insert(line - 1, row)
    drawn = Drawn(write_rows(folder / "problems.jsonl", rows), folder / "rows.jsonl")
    randomly = random.Random(0)
    for end in ENDS:
        before = running_lines(drawn)
        running = start(drawn.output, *MODELS, *options(drawn.source), *SMALL)
        running.wait_for_lines(before + randomly.randint(1, 5) + 4 * (before == 0))
        if end == "kill the engine":
            os.kill(running.engine(), signal.SIGKILL)
            drawn.codes.append(running.wait())
        else:
            drawn.codes.append(running.end(signal.SIGKILL if end == "kill" else signal.SIGTERM))
        drawn.lines.append(running.lines())
        if end == "kill":  # as a machine would leave it that lost power while it wrote
            with drawn.output.open("ab") as file:
                file.write(b'{"custom_id": "p11", "sample": 0, "prompt": [{"ro')
    running = start(drawn.output, *MODELS, *options(drawn.source), *SMALL)
    drawn.codes.append(running.wait())
    drawn.log = running.log.read_text()
    return drawn


def running_lines(drawn: Drawn) -> int:
    return Running(None, drawn.output, drawn.output).lines()  # type: ignore[arg-type]


def test_every_sample_is_there_once(drawn: Drawn) -> None:
    assert drawn.codes == [-signal.SIGKILL, 1, 128 + signal.SIGTERM, 0], drawn.log[-4000:]
    assert drawn.lines == sorted(set(drawn.lines)), "each run got further"
    drawn_samples = sorted((row["custom_id"], row["sample"]) for row in drawn.rows if row["error"] is None)
    assert drawn_samples == sorted((f"p{i}", sample) for i in range(NUM_PROBLEMS) for sample in range(NUM_SAMPLES))


def test_a_signal_lets_running_samples_finish(drawn: Drawn) -> None:
    assert "SIGTERM: " in drawn.log
    assert "stopped by SIGTERM; run the same command again to go on" in drawn.log


def test_the_log_holds_the_commands_own_lines(drawn: Drawn) -> None:
    """Neither vLLM's configuration nor what the interpreter's numpy says of infinities stands between them."""
    assert "starting the engine: " in drawn.log
    assert "theta is not shown: answer" in drawn.log
    assert " INFO " not in drawn.log
    assert "RuntimeWarning" not in drawn.log


def test_an_engine_that_dies_is_one_sentence(drawn: Drawn) -> None:
    said = [line for line in drawn.log.splitlines() if line.startswith("optimal-sampling generate: ")]
    assert len(said) == 1
    assert "the engine died" in said[0]
    assert "run the same command again to go on" in said[0]


def test_each_bad_row_is_one_error_with_its_place(drawn: Drawn) -> None:
    errors = {row["error"].partition(": ")[0]: row for row in drawn.rows if row["error"] is not None}
    assert len(errors) == sum(row["error"] is not None for row in drawn.rows)
    assert set(errors) == {f"problems.jsonl line {line}" for line in BAD_ROWS}
    for line, (_, reason) in BAD_ROWS.items():
        row = errors[f"problems.jsonl line {line}"]
        assert reason in row["error"]
        assert row["sample"] is None
        assert row["completion"] is None
    assert f"{len(BAD_ROWS)} rows failed" in drawn.log


def test_rows_are_what_was_asked_for(drawn: Drawn) -> None:
    tokenizer = AutoTokenizer.from_pretrained(THETA)
    inputs = {f"p{i}": row for i, row in enumerate(problems(NUM_PROBLEMS))}
    for row in drawn.rows:
        if row["error"] is not None:
            continue
        given = inputs[row["custom_id"]]
        assert row["prompt"] == [{"role": "user", "content": given["problem"]}]
        assert row["privileged_context"] == given["answer"]
        assert {name: row[name] for name in given} == given
        (message,) = row["completion"]
        assert message["role"] == "assistant"
        assert message["content"] == tokenizer.decode(row["completion_token_ids"], skip_special_tokens=True)
        theta_ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert row["prompt_token_ids"] == theta_ids
        assert row["finish_reason"] in ("stop", "length")
        record = row["optimal_sampling"]
        assert {len(values) for values in record.values()} == {len(row["completion_token_ids"])}
        assert all(0 <= alpha <= 1 for alpha in record["alpha"])
        assert [tokens[0] for tokens in record["top_token_ids"]] == row["completion_token_ids"]  # drawn greedily
        assert [values[0] for values in record["top_logprob"]] == pytest.approx(record["logprob"], abs=1e-3)


def test_other_settings_are_refused_and_named(drawn: Drawn) -> None:
    before = drawn.output.read_bytes()
    done = run(
        *MODELS, *options(drawn.source), *SMALL, "--top-k", "5", "--alpha-max", "0.9", "--output", str(drawn.output)
    )
    assert done.returncode == 2
    assert "alpha_max is 0.9, and it was 1.0; top_k is 5, and it was 0" in done.stderr
    assert drawn.output.read_bytes() == before


def test_a_finished_run_starts_no_engine(drawn: Drawn) -> None:
    before = drawn.output.read_bytes()
    done = run(*MODELS, *options(drawn.source), *SMALL, "--output", str(drawn.output))
    assert done.returncode == 0, done.stderr
    assert drawn.output.read_bytes() == before
    assert "EngineCore" not in done.stderr


def test_a_signal_while_the_engine_starts_ends_the_command(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", problems(1))
    running = start(tmp_path / "rows.jsonl", *MODELS, *TEMPLATES, "--input", str(source), *SMALL)
    deadline = time.monotonic() + RUN_SECONDS
    while not (tmp_path / "rows.jsonl.settings.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # into vLLM's imports
    assert running.end(signal.SIGTERM) == 128 + signal.SIGTERM, running.log.read_text()[-4000:]
    assert running.lines() == 0


@pytest.fixture(scope="module")
def with_hints(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Teacher and theta with templates that read a variable."""
    folder = tmp_path_factory.mktemp("hints")
    return with_hint(TEACHER, folder / "teacher"), with_hint(THETA, folder / "theta")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, with_hints: tuple[str, str]) -> Iterator[Server]:
    teacher, theta = with_hints
    speculative = json.dumps({"model": theta, "num_speculative_tokens": 3})
    command = [*VLLM, "serve", teacher, "--logits-processor", "optimal_sampling", "--speculative-config", speculative]
    small = [word for name, value in SMALL_SERVER.items() for word in (f"--{name}", str(value)) if word != "True"]
    server = start_server([*command, *small], tmp_path_factory.mktemp("server") / "server.log")
    yield server
    server.stop()


def test_a_server_gives_the_same_rows(drawn: Drawn, server: Server, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = run("--endpoint", server.url, "--theta", THETA, *options(drawn.source), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert comparable(read_rows(output)) == comparable(drawn.rows)
    assert "drafts accepted" in done.stderr


BEST_OF = ["--best-of", "3", "--max-tokens", "64", "--seed", "5", "--id-column", "id", "--chat"]


def test_best_of_through_an_engine_and_through_a_server(
    server: Server, with_hints: tuple[str, str], tmp_path: Path
) -> None:
    """The same candidates either way, the best of them kept, and one draw among them that a run without them has too.

    Both models' templates are given a variable, which changes what is drawn.
    """
    teacher, theta = with_hints
    rows = [{"id": f"p{i}", **row} for i, row in enumerate(problems(3))]
    source = write_rows(tmp_path / "problems.jsonl", rows)
    hints = {"teacher": {"hint": "Mia has 9 apples."}, "theta": {"hint": "Count."}}
    given = [word for who, hint in hints.items() for word in (f"--{who}-chat-template-kwargs", json.dumps(hint))]
    asked = ["--input", str(source), *TEMPLATES, *BEST_OF, *given]
    models = ["--teacher", teacher, "--theta", theta, "--num-speculative-tokens", "3"]
    running = start(tmp_path / "engine.jsonl", *models, *asked, "--return-alpha", *SMALL)
    assert running.wait() == 0, running.log.read_text()[-4000:]
    done = run("--endpoint", server.url, *asked, "--output", str(tmp_path / "server.jsonl"))
    assert done.returncode == 0, done.stderr
    served = {row["custom_id"]: row for row in read_rows(tmp_path / "server.jsonl")}
    for row in read_rows(tmp_path / "engine.jsonl"):
        other = served[row["custom_id"]]
        assert "optimal_sampling" not in other
        assert row["prompt_token_ids"] == chat_tokens(theta, row["prompt"], **hints["theta"])
        log_z = [one["log_z"] for one in row["candidates"]]
        assert len(log_z) == 3
        assert [one["kept"] for one in row["candidates"]] == [one == max(log_z) for one in log_z]
        assert sum(row["optimal_sampling"]["log_z"]) == pytest.approx(max(log_z), abs=1e-4)
        assert len(row["completion_token_ids"]) == row["candidates"][log_z.index(max(log_z))]["num_tokens"]
        # Another batch may round a draw over an edge, never most of them.
        same = [
            a["log_z"] == pytest.approx(b["log_z"], abs=1e-3)
            for a, b in zip(row["candidates"], other["candidates"], strict=True)
        ]
        assert sum(same) >= 2
    assert len(served) == 3
    too_long = json.dumps({"hint": "apples " * 300})
    for who in hints:  # what a server's models read is known by what is too long for them
        output = tmp_path / f"{who}.jsonl"
        asked = ["--input", str(source), *TEMPLATES, "--chat", f"--{who}-chat-template-kwargs", too_long]
        done = run("--endpoint", server.url, *asked, "--max-tokens", "8", "--limit", "1", "--output", str(output))
        assert done.returncode == 1, done.stderr
        (row,) = read_rows(output)
        assert re.search("theta_messages has .* tokens" if who == "theta" else "context length", row["error"]), row


def test_a_server_is_given_thetas_tokens_with_the_variables(with_hints: tuple[str, str]) -> None:
    """Where theta's tokenizer is here."""
    _, theta = with_hints
    variables = {"hint": "Count."}
    settings = Settings(
        input=("in.jsonl",),
        output="rows.jsonl",
        endpoint="http://localhost:1",
        theta=theta,
        theta_template="{{ problem }}",
        chat=True,
        theta_chat_template_kwargs=variables,
    )
    messages = [{"role": "user", "content": "2 + 2"}]
    prepared = asyncio.run(Endpoint(settings).prepare(Prompts(messages, messages, None)))
    assert prepared.theta_ids == chat_tokens(theta, messages, **variables) != chat_tokens(theta, messages)
    assert prepared.request == (messages, {"theta_prompt_token_ids": prepared.theta_ids})


def comparable(rows: list[dict[str, Any]]) -> dict[Any, Any]:
    """Rows by id and sample, without what rounding may change and without the words of vLLM's refusals."""
    return {
        (row["custom_id"], row["sample"]): {
            name: bool(value) if name == "error" else value for name, value in row.items() if name != "optimal_sampling"
        }
        for row in rows
    }


def test_a_server_alone_gives_rows_from_raw_text(server: Server, tmp_path: Path) -> None:
    """Without --theta, without --chat: one command from CSV to rows, over a server's name only."""
    source = tmp_path / "problems.csv"
    source.write_text('problem,answer\n"Mia has 4 apples.\nHow many?",4\n')
    output = tmp_path / "rows.jsonl"
    done = run(
        *[
            "--endpoint",
            server.url,
            "--input",
            str(source),
            "--output",
            str(output),
            "--max-tokens",
            "8",
            "--seed",
            "1",
        ],
        *["--theta-template", "Q: {{ problem }} A:", "--teacher-template", "Q: {{ problem }} ({{ answer }}) A:"],
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(output)
    assert row["custom_id"] == "problems.csv:2"
    assert row["prompt"] == "Q: Mia has 4 apples.\nHow many? A:"
    assert isinstance(row["completion"], str)
    assert row["privileged_context"] == "4"
    assert row["prompt_token_ids"] is None
    assert 1 <= len(row["completion_token_ids"]) <= 8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--teacher", "another"], "teacher='another' is not served by"),
        (["--endpoint", "http://127.0.0.1:9"], "does not answer"),
        (["--top-p", "2"], "refuses the sampling options: top_p must be in"),
    ],
)
def test_a_server_that_cannot_do_it(server: Server, tmp_path: Path, change: list[str], reason: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", problems(1))
    output = tmp_path / "rows.jsonl"
    endpoint = [] if "--endpoint" in change else ["--endpoint", server.url]
    done = run(*endpoint, "--input", str(source), "--output", str(output), *TEMPLATES, *change)
    assert done.returncode == 2, done.stderr
    assert reason in done.stderr
    assert not output.exists()


@pytest.mark.full
def test_two_engines_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    source, output = write_rows(tmp_path / "problems.jsonl", [*problems(10), b"{\n"]), tmp_path / "rows.jsonl"
    command = ["--input", str(source), *TEMPLATES, "--chat", "--max-tokens", "24", "--num-samples", "2", "--ray", "2"]
    running = start(output, *MODELS, *command, *SMALL)
    assert running.wait() == 0, running.log.read_text()[-4000:]
    log = running.log.read_text()
    assert len(set(re.findall(r"EngineCore pid=(\d+)", log))) == 2
    assert "drafts accepted" in log
    good = [(row["custom_id"], row["sample"]) for row in read_rows(output) if row["error"] is None]
    assert sorted(good) == sorted((f"problems.jsonl:{line}", sample) for line in range(1, 11) for sample in range(2))
    assert sum(row["error"] is not None for row in read_rows(output)) == 1


@pytest.mark.full
def test_two_thousand_rows_and_twenty_kills(tmp_path: Path) -> None:
    rows = [{**row, "copy": copy} for copy in range(4) for row in problems(500)]
    source, output = write_rows(tmp_path / "problems.jsonl", rows), tmp_path / "rows.jsonl"
    command = [*MODELS, "--input", str(source), *TEMPLATES, "--chat", "--max-tokens", "4", *SMALL]
    randomly = random.Random(1)
    for _ in range(20):
        running = start(output, *command)
        running.wait_for_lines(running.lines() + randomly.randint(1, 120))
        running.end(signal.SIGKILL)
    running = start(output, *command)
    assert running.wait() == 0, running.log.read_text()[-4000:]
    found = [(row["custom_id"], row["sample"]) for row in read_rows(output)]
    assert len(found) == len(rows)
    assert set(found) == {(f"problems.jsonl:{line}", 0) for line in range(1, len(rows) + 1)}
