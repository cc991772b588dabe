"""A real `vllm serve` as a child process, on a free port of this machine, and what tests ask it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.gpu import GPU_OPTIONS

VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
"""The command `vllm` of the interpreter that runs the tests."""

GPU_SHARE = {name.replace("_", "-"): share for name, share in GPU_OPTIONS.items()}
"""What lets an engine start on a GPU beside those of other tests, as `vllm serve` spells it; nothing without one."""

SMALL_SERVER = {
    "dtype": "float32",
    "enforce-eager": True,
    "max-model-len": 256,
    "max-num-seqs": 8,
    "kv-cache-memory-bytes": 1 << 26,
    "block-size": 32,
    **GPU_SHARE,
}
"""What keeps an engine small, as `vllm serve` spells it."""

SMALL_OPTIONS = [
    option
    for name, value in SMALL_SERVER.items()
    for option in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
]
"""The same as words of a command."""

START_SECONDS = 420  # 25 to 40 s on two idle cores; CI shares them
REQUEST_SECONDS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A server that answers, until `stop`."""

    port: int
    process: subprocess.Popen
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def send(self, path: str, body: Any = None) -> tuple[int, Any]:
        """GET, or POST a body (an object, or bytes as they are). Returns the status and the answer, parsed if JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                connection.request("POST", path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        return response.status, json.loads(text) if text.startswith(("{", "[")) else text

    def is_alive(self) -> bool:
        return self.process.poll() is None and self.send("/health")[0] == 200

    def stop(self) -> None:
        """End the server and what it started: they are a process group of their own."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def start_server(command: Sequence[str], log_path: Path, cwd: Path | None = None) -> Server:
    """Start `vllm serve ...` with a port of its own and wait until it answers.

    Raises:
        RuntimeError: it ended, or did not answer in time; with the end of its log.
    """
    port = free_port()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
        )
    server = Server(port, process, log_path)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if server.send("/health")[0] == 200:
                return server
        except OSError:
            time.sleep(0.3)
    server.stop()
    raise RuntimeError(f"the server did not come up: {process.args}\n{server.log[-6000:]}")
