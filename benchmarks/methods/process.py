"""A method in a process of its own: engines keep global state, and several can wait while one of them is measured."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prompts import Prompt

from methods.base import Counters, Settings


@dataclass(frozen=True)
class Batch:
    """One call of `generate`, timed inside the method's process."""

    seconds: float
    cpu_seconds: float
    """Processor time of the process, all threads: less moved by what else runs on the machine."""
    tokens: int
    counters: Counters

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.tokens / self.cpu_seconds


class MethodProcess:
    """Starts a method and passes calls on to it, one at a time; several can start side by side.

    Args:
        name: of a method in `METHODS`.
        settings: it is started with.
        log: where its output goes.

    Calls raise RuntimeError where the method failed; the message has the last line of its error, the log has the rest.
    """

    def __init__(self, name: str, settings: Settings, log: Path) -> None:
        self.name = name
        self.log = log
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, settings, log, theirs))
        self._begin = time.perf_counter()
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> float:
        """Seconds from its start until it was ready, its engine loaded. To be called once, before any other call."""
        self._receive()
        return time.perf_counter() - self._begin

    def generate(self, prompts: Sequence[Prompt], max_tokens: int, seed: int) -> Batch:
        return self.call("generate", prompts, max_tokens, seed)

    def call(self, what: str, *arguments: Any) -> Any:
        """Call a method of the method; `generate` and `generate_to_the_end` give a `Batch`."""
        self._connection.send((what, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            error, result = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"{self.name} ended with {self._process.exitcode}; see {self.log}") from None
        if error is not None:
            raise RuntimeError(f"{self.name} failed: {error.strip().splitlines()[-1]}; see {self.log}")
        return result

    def close(self) -> None:
        if self._process.is_alive():
            try:
                self._connection.send(("close", ()))
                self._receive()
            except (RuntimeError, OSError):
                pass
        self._connection.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(name: str, settings: Settings, log: Path, connection: Connection) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(target, stream)
    try:
        from methods import find

        method = find(name)(settings)
        connection.send((None, None))
        while True:
            what, arguments = connection.recv()
            is_timed = what in ("generate", "generate_to_the_end")
            result = _timed(method, what, *arguments) if is_timed else getattr(method, what)(*arguments)
            connection.send((None, result))
            if what == "close":
                return
    except EOFError:  # the benchmark is gone
        return
    except BaseException:
        error = traceback.format_exc()
        os.write(2, error.encode())
        connection.send((error, None))


def _timed(method: Any, what: str, prompts: Sequence[Prompt], max_tokens: int, seed: int) -> Batch:
    before = method.counters()
    begin, cpu = time.perf_counter(), time.process_time()
    tokens = getattr(method, what)(prompts, max_tokens, seed)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    count = sum(map(len, tokens))
    if what == "generate" and count != len(prompts) * max_tokens:
        raise RuntimeError(f"{method.name} gave {count} tokens, not {len(prompts)} x {max_tokens}")
    return Batch(seconds, cpu_seconds, count, method.counters().since(before))
