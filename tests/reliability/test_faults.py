"""What breaks from outside: the engine killed, signals, spoilt weights, a second engine, a full disk, a clock that jumps."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from questions import Question, tokens_of
from small_server import command, small_server

from support.example_pair import THETA
from support.servers import START_SECONDS, Server, start_server

ROOT = Path(__file__).resolve().parents[2]
CLIENT_SECONDS = 60
"""A client that waits longer for the end of a dead engine's answer hangs."""
DRAIN_SECONDS = 400
"""A server that ends in an orderly way may finish its answers first, six of 120 tokens, slowly on a busy machine."""
EXIT_SECONDS = 60


def _core(server: Server) -> psutil.Process:
    (core,) = (
        child
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if "EngineCore" in " ".join(child.cmdline())
    )
    return core


class Load:
    """Clients with long texts under way, half of them streams; what became of each, and when."""

    def __init__(self, server: Server, question: Question, clients: int = 6):
        self.server, self.question = server, question
        self.ends: list[tuple[float, str]] = []
        self.threads = [threading.Thread(target=self._ask, args=(i % 2 == 0,), daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()
        deadline = time.monotonic() + CLIENT_SECONDS
        while "vllm:num_requests_running" not in (text := str(server.send("/metrics")[1])) or _running(text) == 0:
            assert time.monotonic() < deadline, "no request ever ran"
            time.sleep(0.1)

    def _ask(self, stream: bool) -> None:
        body = {**self.question.body, "max_tokens": 120, "ignore_eos": True, "stream": stream}
        try:
            status, answer = self.server.send(self.question.path, body)
            end = "whole" if status == 200 and "error" not in str(answer)[-600:] else f"error {status}"
        except Exception as error:
            end = type(error).__name__
        self.ends.append((time.monotonic(), end))

    def wait(self, seconds: float = CLIENT_SECONDS) -> list[str]:
        """How each client's request ended. Fails if one has not after so long."""
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in self.threads), f"a client hangs; the others: {self.ends}"
        return [end for _, end in self.ends]


def _running(metrics: str) -> float:
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith("vllm:num_requests_running")
    )


def _is_right(server: Server, question: Question) -> bool:
    status, answer = server.send(question.path, question.body)
    return status == 200 and tokens_of(answer) == list(question.answer)


def _assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    while left := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)


def _tree(server: Server) -> list[int]:
    parent = psutil.Process(server.process.pid)
    return [parent.pid, *(child.pid for child in parent.children(recursive=True))]


def test_a_dead_engine_ends_every_answer_and_the_server(tmp_path: Path, questions: list[Question]) -> None:
    """Clients get an error, the server ends by itself, and nothing is left; then a server started anew answers, and SIGTERM
    under load ends that one in an orderly way.

    vLLM's server ends with code 0 here, so a supervisor has to restart it whatever the code (docs/troubleshooting.md).
    """
    start = command(tmp_path)
    server = start_server(start, tmp_path / "first.log")
    try:
        assert _is_right(server, questions[0])
        pids = _tree(server)
        load = Load(server, questions[0])
        _core(server).send_signal(signal.SIGKILL)
        ends = load.wait()
        assert "whole" not in ends, ends
        server.process.wait(EXIT_SECONDS)
        _assert_gone(pids)
        assert "EngineDeadError" in server.log or "died unexpectedly" in server.log
    finally:
        server.stop()

    again = start_server(start, tmp_path / "again.log")
    try:
        assert _is_right(again, questions[0])
        pids = _tree(again)
        load = Load(again, questions[0])
        again.process.terminate()
        assert load.wait(DRAIN_SECONDS)
        assert again.process.wait(EXIT_SECONDS) in (0, -signal.SIGTERM)
        _assert_gone(pids)
    finally:
        again.stop()


@pytest.mark.full
@pytest.mark.parametrize("seconds", [3, 8, 14])
def test_a_signal_while_the_server_starts(tmp_path: Path, seconds: float) -> None:
    """Wherever in its start-up it is: imports, models being loaded, the engine being made. Nothing is left behind."""
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command(tmp_path), "--host", "127.0.0.1", "--port", "0"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        time.sleep(seconds)
        pids = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        process.terminate()
        process.wait(EXIT_SECONDS)
        _assert_gone(pids)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.full
def test_two_engines_on_one_machine(server: Server, tmp_path: Path, questions: list[Question]) -> None:
    """Ports, shared memory and caches of one do not meet those of the other."""
    with small_server(tmp_path / "second.log") as second:
        found: dict[int, bool] = {}
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: _is_right((server, second)[i % 2], questions[i % 6])}))
            for i in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
    assert found == dict.fromkeys(range(6), True)
    assert _is_right(server, questions[1]), "the end of the second engine hurt the first"


# Theta's weights


def _remove(theta: Path) -> None:
    (theta / "model.safetensors").unlink()


def _truncate(theta: Path) -> None:
    weights = theta / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])


def _reshape(theta: Path) -> None:
    config = json.loads((theta / "config.json").read_text())
    config["hidden_size"] *= 2  # too small a size vLLM takes for a shard of the weights, and serves the model
    (theta / "config.json").write_text(json.dumps(config))


def _spoil(theta: Path) -> None:
    (theta / "model.safetensors").write_bytes(b"\xff" * 5000)


def _empty(theta: Path) -> None:
    shutil.rmtree(theta)
    theta.mkdir()


def _nowhere(theta: Path) -> None:
    shutil.rmtree(theta)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (_remove, "theta"),
    "truncated": (_truncate, "theta"),
    "another shape": (_reshape, "theta"),
    "not weights": (_spoil, "theta"),
    "an empty folder": (_empty, "theta"),
    "no folder": (_nowhere, "theta"),
}


def start_fails(tmp_path: Path, theta: Path) -> str:
    """What a server prints that cannot start with this theta."""
    config = {"model": str(theta), "num_speculative_tokens": 2}
    done = subprocess.run(
        [*command(tmp_path, **{"speculative-config": config}), "--host", "127.0.0.1", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode not in (0, None)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "damage", ["truncated", *(pytest.param(name, marks=pytest.mark.full) for name in DAMAGE if name != "truncated")]
)
def test_a_theta_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    """The server ends, and says that it is theta's files, and where."""
    theta = tmp_path / "student"
    shutil.copytree(THETA, theta)
    spoil, reason = DAMAGE[damage]
    spoil(theta)
    said = start_fails(tmp_path, theta)
    start = "optimal sampling cannot start: "
    (line,) = {line.partition(start)[2] for line in said.splitlines() if start in line}
    assert str(theta) in line, line
    assert reason in line, line


# Clocks and disks


def test_no_module_measures_time_by_the_wall_clock() -> None:
    """A jump of the system's clock moves nothing: durations are taken from monotonic clocks only."""
    wall = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}
    found = []
    for folder in ("vllm_optimal_sampling", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    found += [f"{path}:{node.lineno}"] if (node.value.id, node.attr) in wall else []
                if isinstance(node, ast.ImportFrom) and node.module == "time":
                    found += [f"{path}:{node.lineno}" for name in node.names if name.name in ("time", "time_ns")]
    assert found == []


FAKETIME = next(
    (
        str(path)
        for folder in ("/usr/lib", "/usr/lib64")
        for path in Path(folder).glob("**/faketime/libfaketimeMT.so.1")
    ),
    None,
)


@pytest.mark.full
@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install libfaketime)")
@pytest.mark.parametrize("jump", ["+3d", "-3d"])
def test_a_clock_that_jumps(
    tmp_path: Path, questions: list[Question], jump: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock jumps by days while answers are under way: they come, right, and so do later ones."""
    setting = tmp_path / "faketime"
    setting.write_text("+0\n")
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(setting))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("DONT_FAKE_MONOTONIC", "1")
    with small_server(tmp_path / "server.log") as server:
        assert _is_right(server, questions[0])
        results: list[bool] = []
        threads = [threading.Thread(target=lambda: results.append(_is_right(server, questions[1]))) for _ in range(4)]
        for thread in threads:
            thread.start()
        setting.write_text(f"{jump}\n")
        for thread in threads:
            thread.join(240)
        assert results == [True] * 4
        assert _is_right(server, questions[2])
        assert server.is_alive()


def test_a_full_disk_under_the_generator(tmp_path: Path) -> None:
    """The run ends with one message; what was acknowledged is whole, and the next run goes on behind it."""
    pytest.importorskip("vllm_optimal_sampling.data.generate.output", reason="data generation is not in this tree")
    script = """
import resource, signal, sys
from pathlib import Path
from vllm_optimal_sampling.data.generate.output import Output
from vllm_optimal_sampling.data.generate.errors import RunError

room = int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is then an error, as on a full disk
folder = Path(sys.argv[1])
output = Output(folder / "rows.jsonl", folder / "rows.jsonl.settings.json", {"seed": 1}, {})
begun = output.finished.count
if room:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
acknowledged = begun
try:
    for number in range(begun, 100):
        output.write({"custom_id": str(number), "sample": 0, "completion": "x" * 100, "error": None})
        acknowledged += 1
except RunError as error:
    sys.stderr.write(f"{error}\\n")
finally:
    output.close()
sys.stdout.write(f"{begun} {acknowledged}")
"""

    def run(room: int) -> tuple[int, int, str]:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), str(room)],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        begun, acknowledged = map(int, done.stdout.split())
        return begun, acknowledged, done.stderr

    begun, acknowledged, said = run(room=4000)
    assert begun == 0
    assert 10 < acknowledged < 100
    (line,) = said.strip().splitlines()
    assert "cannot be written" in line and "make room and run the same command again" in line
    again, total, said = run(room=0)
    assert again == acknowledged, "a row that was acknowledged is lost, or a torn one was taken for whole"
    assert total == 100
    assert said == ""
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 100
