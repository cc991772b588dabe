"""Mixed traffic on a live server for a long time: is every greedy answer right, and does anything grow?

Clients stream and don't, chat and complete, sample several, give up (by closing the connection mid-stream, or by a
time-out of their own), and come in bursts beyond `max_num_seqs`; the cache has so few blocks that long requests preempt
one another. Each greedy answer is compared with brute force. Memory comes from /proc, the rest from /metrics.

    export PYTHONPATH=tests:examples/pair
    python tests/reliability/soak.py                    # 30 minutes; result: tests/reliability/results/soak.json
    python tests/reliability/soak.py --minutes 0.7      # what CI runs
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import re
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from questions import Question, make_questions, tokens_of
from record import Record
from small_server import MAX_NUM_SEQS, NUM_BLOCKS, small_server

from support.servers import Server

CLIENTS = 2 * MAX_NUM_SEQS + 2
SAMPLE_SECONDS = 5.0
IDLE_SECONDS = 60.0
ONEDNN_CACHE = "8"
"""Programs that oneDNN keeps for vLLM's CPU build, 1,024 by default: one for each layer and number of tokens in a step, so that
memory grows with each new number until the cache is full. With few of them, growth is something else."""
GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "cache used": "vllm:kv_cache_usage_perc",
    "preemptions": "vllm:num_preemptions_total",
    "generated tokens": "vllm:generation_tokens_total",
}


def gauges(server: Server) -> dict[str, float]:
    """What /metrics says now, summed over labels."""
    status, text = server.send("/metrics")
    assert status == 200, text
    return {
        name: sum(float(value) for value in re.findall(rf"^{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))
        for name, metric in GAUGES.items()
    }


def is_idle(found: dict[str, float]) -> bool:
    return found["running"] == found["waiting"] == found["cache used"] == 0


def wait_until_idle(server: Server) -> dict[str, float]:
    """The gauges once nothing runs; as they are after a minute if something does."""
    deadline = time.monotonic() + IDLE_SECONDS
    while not is_idle(found := gauges(server)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def processes(server: Server) -> list[psutil.Process]:
    """The server's process and all below it, the front end first."""
    parent = psutil.Process(server.process.pid)
    return [parent, *sorted(parent.children(recursive=True), key=lambda process: process.pid)]


def memory(server: Server) -> dict[str, float]:
    """Resident MiB of each process of the server, by its name and number."""
    return {
        f"{number} {process.name()}": round(process.memory_info().rss / 2**20, 2)
        for number, process in enumerate(processes(server))
    }


class Traffic:
    """Clients that do one thing after another until told to stop; what they did is counted, what was wrong is kept."""

    def __init__(self, server: Server, questions: Sequence[Question], seed: int):
        self.server, self.questions = server, questions
        self.counts: Counter = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._burst = threading.Barrier(CLIENTS)
        self._threads = [
            threading.Thread(target=self._client, args=(random.Random(seed * 1000 + number),), daemon=True)
            for number in range(CLIENTS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._burst.abort()
        for thread in self._threads:
            thread.join(240)
        if any(thread.is_alive() for thread in self._threads):
            self.wrong.append("a client hangs")

    def _client(self, rng: random.Random) -> None:
        actions = [self._ask] * 6 + [self._stream] * 4 + [self._leave_stream] * 3 + [self._time_out] * 2
        actions += [self._long, self._samples, self._refused, self._abort_at_once]
        while not self._stop.is_set():
            if rng.random() < 0.02:  # all at once, now and then
                try:
                    self._burst.wait(timeout=5)
                    self._count("burst")
                except threading.BrokenBarrierError:
                    if not self._stop.is_set():
                        self._burst.reset()
            action = rng.choice(actions)
            try:
                action(rng)
                self._count(action.__name__.strip("_"))
            except Exception as error:
                self._note(f"{action.__name__}: {error!r}")
            if rng.random() < 0.3:
                self._stop.wait(rng.random() * 2)

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _note(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what[:2000])

    def _compare(self, question: Question, found: Sequence[int]) -> None:
        if tuple(found) == question.answer:
            self._count("greedy answers right")
        else:
            self._note(f"{question} got {list(found)}")

    def _ask(self, rng: random.Random) -> None:
        question = rng.choice(self.questions)
        status, answer = self.server.send(question.path, question.body)
        self._compare(question, tokens_of(answer) if status == 200 else [-status])

    def _open_stream(self, body: dict[str, Any], path: str) -> tuple[http.client.HTTPConnection, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def _stream(self, rng: random.Random) -> None:
        question = rng.choice(self.questions)
        connection, response = self._open_stream(question.body, question.path)
        tokens: list[int] = []
        for line in response:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if "choices" not in chunk:
                    raise RuntimeError(f"{chunk}")
                for choice in chunk["choices"]:
                    tokens += choice.get("token_ids") or []
        connection.close()
        self._compare(question, tokens)

    def _leave_stream(self, rng: random.Random) -> None:
        """Read a little of a long text, and hang up."""
        question = rng.choice(self.questions)
        body = {**question.body, "max_tokens": 80, "ignore_eos": True}
        connection, response = self._open_stream(body, question.path)
        for _ in range(rng.randrange(1, 12)):
            response.readline()
        connection.close()

    def _abort_at_once(self, rng: random.Random) -> None:
        """Hang up before anything has come back."""
        question = rng.choice(self.questions)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        connection.request("POST", question.path, json.dumps(question.body), {"Content-Type": "application/json"})
        connection.close()

    def _time_out(self, rng: random.Random) -> None:
        """Wait for less time than a long text takes."""
        question = rng.choice(self.questions)
        body = {**question.body, "max_tokens": 80, "ignore_eos": True}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=rng.uniform(0.05, 1.5))
        try:
            connection.request("POST", question.path, json.dumps(body), {"Content-Type": "application/json"})
            connection.getresponse().read()
            self._count("answered before the time-out")
        except TimeoutError:
            pass
        finally:
            connection.close()

    def _long(self, rng: random.Random) -> None:
        """Up to the model's length, so that two such requests need more blocks than there are."""
        prompt = [7 + rng.randrange(300) for _ in range(120)]
        theta = [11 + rng.randrange(300) for _ in range(rng.choice([10, 120, 150]))]
        body = {
            "model": "teacher",
            "prompt": prompt,
            "max_tokens": 100,
            "ignore_eos": True,
            "temperature": 1,
            "return_token_ids": True,
            "vllm_xargs": {"theta_prompt_token_ids": theta},
        }
        status, answer = self.server.send("/v1/completions", body)
        if status != 200 or len(tokens_of(answer)) != 100:
            self._note(f"long request: {status} {str(answer)[:500]}")

    def _samples(self, rng: random.Random) -> None:
        """Several samples with a record each; as many numbers as tokens."""
        question = rng.choice(self.questions)
        arguments = question.body["vllm_xargs"]
        extra = {"return_alpha": True} if arguments.get("optimal_sampling", True) else {}
        body = {**question.body, "n": 3, "temperature": 1, "vllm_xargs": {**arguments, **extra}}
        status, answer = self.server.send(question.path, body)
        if status != 200 or len(answer["choices"]) != 3:
            self._note(f"samples: {status} {str(answer)[:500]}")
        elif extra and any(len(c["optimal_sampling"]["alpha"]) != len(c["token_ids"]) for c in answer["choices"]):
            self._note(f"samples: a record without its tokens: {str(answer)[:500]}")

    def _refused(self, rng: random.Random) -> None:
        question = rng.choice(self.questions)
        body = {**question.body, "vllm_xargs": {"alpha": rng.uniform(2, 3)}}
        status, answer = self.server.send(question.path, body)
        if status != 400:
            self._note(f"a bad request got {status} {str(answer)[:500]}")


def all_slots_run(server: Server, question: Question) -> bool:
    """Whether every request slot is free: as many requests as there are slots run at the same time, and are right."""
    body = {**question.body, "max_tokens": 24, "ignore_eos": True}
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.send(question.path, body))) for _ in range(MAX_NUM_SEQS)
    ]
    for thread in threads:
        thread.start()
    most = 0.0
    while any(thread.is_alive() for thread in threads):
        most = max(most, gauges(server)["running"])
        time.sleep(0.02)
    texts = {tuple(tokens_of(answer)) for status, answer in answers if status == 200}
    return most == MAX_NUM_SEQS and len(answers) == MAX_NUM_SEQS and len(texts) == 1


def all_blocks_run(server: Server) -> bool:
    """Whether every block is free: requests that take nearly all of them together run without a preemption."""
    before = gauges(server)["preemptions"]
    # 229 and 119 tokens with the slots ahead: 8 and 4 of the 13 blocks that there are for requests.
    bodies = [
        {
            "model": "teacher",
            "prompt": [7 + i for i in range(length)],
            "max_tokens": 24,
            "ignore_eos": True,
            "temperature": 0,
            "return_token_ids": True,
        }
        for length in (200, 90)
    ]
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda body=body: statuses.append(server.send("/v1/completions", body)[0]))
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    return statuses == [200] * len(bodies) and gauges(server)["preemptions"] == before


def trend(times: Sequence[float], values: Sequence[float], batches: int = 10) -> dict[str, float]:
    """Slope of values over times (s), per hour, with a 95 % interval that allows for values that hang together.

    The series is cut into batches whose means count as independent; the slope is fitted to those.
    """
    size = len(times) // batches
    if size < 1:
        return {}
    x = [statistics.fmean(times[i * size : (i + 1) * size]) / 3600 for i in range(batches)]
    y = [statistics.fmean(values[i * size : (i + 1) * size]) for i in range(batches)]
    slope, intercept = statistics.linear_regression(x, y)
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / (batches - 2)
    mean = statistics.fmean(x)
    error = math.sqrt(residual / sum((a - mean) ** 2 for a in x))
    reach = 2.306 * error  # Student's t of 8 degrees of freedom
    return {"slope": round(slope, 3), "low": round(slope - reach, 3), "high": round(slope + reach, 3)}


def by_minute(samples: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The memory of each process at the first sample of every fifth minute, and at the last sample."""
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        found.setdefault(f"{int(sample['second'] // 300) * 5}", sample["memory"])
    if samples:
        found[f"{samples[-1]['second'] / 60:.0f}"] = samples[-1]["memory"]
    return found


def soak(server: Server, seconds: float, seed: int = 0, record: Record | None = None) -> dict[str, Any]:
    """Traffic for so long; what was done, measured and found at the end.

    Args:
        server: one of `small_server`, idle.
        seconds: of traffic.
        seed: of problems and clients.
        record: where the state is saved every minute.

    Returns:
        JSON: `counts`, `wrong` (empty where all went well), `idle at start` and `idle at end`, `growth` of resident
        memory in MiB per hour after the first third by process, and `memory by minute`: MiB at every fifth.
    """
    questions = make_questions(12, seed=seed)
    for question in questions[: MAX_NUM_SEQS + 1]:  # what is loaded with the first use
        server.send(question.path, question.body)
    first = {"gauges": wait_until_idle(server), "memory": memory(server)}
    traffic = Traffic(server, questions, seed)
    samples: list[dict[str, Any]] = []
    outcome: dict[str, Any] = {"seconds": seconds, "clients": CLIENTS, "slots": MAX_NUM_SEQS, "blocks": NUM_BLOCKS}
    outcome["oneDNN cache"] = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "default")
    outcome["idle at start"] = first
    start = saved = time.monotonic()
    traffic.start()
    while (now := time.monotonic()) < start + seconds and server.process.poll() is None:
        samples.append({"second": round(now - start, 1), "memory": memory(server), "gauges": gauges(server)})
        if record is not None and now - saved > 60:
            saved = now
            state = {"counts": dict(traffic.counts), "wrong": traffic.wrong, "memory by minute": by_minute(samples)}
            record.data.update(outcome | state)
            record.save()
        time.sleep(min(SAMPLE_SECONDS, seconds / 20))
    traffic.stop()
    alive = server.is_alive()
    outcome |= {
        "counts": dict(sorted(traffic.counts.items())),
        "wrong": traffic.wrong,
        "engine alive": alive,
        "memory by minute": by_minute(samples),
    }
    if not alive:
        return outcome
    last = {"gauges": wait_until_idle(server), "memory": memory(server)}
    warm = [sample for sample in samples if sample["second"] > seconds / 3]
    outcome |= {
        "idle at end": last,
        "preemptions": last["gauges"]["preemptions"] - first["gauges"]["preemptions"],
        "tokens": last["gauges"]["generated tokens"] - first["gauges"]["generated tokens"],
        "most waiting": max(sample["gauges"]["waiting"] for sample in samples),
        "every slot is free": all_slots_run(server, questions[0]),
        "every block is free": all_blocks_run(server),
        "processes": {"start": len(first["memory"]), "end": len(last["memory"])},
        "growth": {
            name: trend([sample["second"] for sample in warm], [sample["memory"][name] for sample in warm])
            for name in first["memory"]
            if all(name in sample["memory"] for sample in warm)
        },
    }
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "soak.json")
    options = parser.parse_args()
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = ONEDNN_CACHE
    record = Record(options.output, fresh=True)
    with TemporaryDirectory() as folder, small_server(Path(folder) / "server.log") as server:
        outcome = soak(server, options.minutes * 60, options.seed, record)
    record.data = outcome
    record.save()
    print(json.dumps(outcome, indent=1))
    fine = outcome["engine alive"] and not outcome["wrong"] and is_idle(outcome["idle at end"]["gauges"])
    return 0 if fine and outcome["every slot is free"] and outcome["every block is free"] else 1


if __name__ == "__main__":
    sys.exit(main())
