"""The per-token record of `return_alpha`, and the metrics, against float64 on what the engine really returned."""

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm_optimal_sampling.kernels import Method

from support.cases import KL_SYMMETRY, OPTED_OUT, TEACHER_ALONE, THETA_ALONE, Case, generate, token_ids
from support.reference_models import Reference, expected_log_q, greedy_tokens
from support.servers import GPU_SHARE
from support.sessions import Part, context_of, run_session
from vllm_optimal_sampling.front_end.records import TokenRecords, merge_records
from vllm_optimal_sampling.wire import RECORD_FIELDS, TOP_FIELDS

K = 3
# float32 models through other attention kernels against float64 (see `row_audit`): up to 3e-5 nats on likely tokens, more
# on the rare ones that sampling also draws. A record of a neighbouring token or row is off by 0.1 and more.
TOLERANCES = {"alpha": 2e-3, "kl": 2e-3, "log_z": 2e-3, "logprob": 2e-3, "teacher_logprob": 2e-3, "theta_logprob": 2e-3}
ASKED = {"return_alpha": True}
BOUNDED = {"alpha_max": 0.3}


def check(reference: Reference, case: Case, tokens: list[int], records: Any) -> None:
    """Compare the record of every token of an output with both models in float64."""
    assert tokens
    assert all(len(getattr(records, name)) == len(tokens) for name in RECORD_FIELDS)
    arguments = {name: value for name, value in case.arguments.items() if name in ("alpha", "alpha_min", "alpha_max")}
    method = Method[case.arguments.get("alpha_method", "kl_symmetry").upper()]
    plain = case.arguments.get("teacher_only_tokens", 0)
    prompt = case.prompt if case.theta_prompt is None else case.theta_prompt
    reference.logits(reference.teacher, [*case.prompt, *tokens])  # one forward for all prefixes
    reference.logits(reference.theta, [*prompt, *tokens])
    for i, token in enumerate(tokens):
        v = reference.logits(reference.teacher, [*case.prompt, *tokens[:i]]).log_softmax(-1)
        u = reference.logits(reference.theta, [*prompt, *tokens[:i]]).log_softmax(-1)
        log_q = v if i < plain else expected_log_q(v, u, method, **arguments)
        # log q = u + alpha (v - u) - log Z: alpha is the slope between the two tokens that differ most in v - u.
        low, high = int((v - u).argmin()), int((v - u).argmax())
        alpha = ((log_q - u)[high] - (log_q - u)[low]) / ((v - u)[high] - (v - u)[low])
        expected = {
            "alpha": alpha,
            "kl": (log_q.exp() * (log_q - u)).sum(),
            # Of theta^(1 - alpha) teacher^alpha over the vocabulary: q* = that / Z, at any token.
            "log_z": nan if i < plain else (u + alpha * (v - u)).logsumexp(-1),
            "logprob": log_q[token],
            "teacher_logprob": v[token],
            "theta_logprob": u[token],
        }
        for name, value in expected.items():
            found = getattr(records, name)[i]
            expected_value = pytest.approx(float(value), abs=TOLERANCES[name], nan_ok=True)
            assert found == expected_value, (name, i, case.arguments)
        assert records.fallback[i] is False
        check_top(case, records, i, log_q, v, u)
    if "return_top_k" not in case.arguments:
        assert all(getattr(records, name) == [] for name in TOP_FIELDS)


def check_top(case: Case, records: Any, i: int, log_q: Any, v: Any, u: Any) -> None:
    """The likeliest tokens of a row: those of float64, but for rows whose k-th has a rival that is as likely."""
    k = case.arguments.get("return_top_k", 0)
    if k == 0:
        return
    tokens = records.top_token_ids[i]
    assert len(set(tokens)) == len(tokens) == k
    for place, wanted in enumerate(log_q.topk(k).values.tolist()):
        token = tokens[place]
        expected = {"top_logprob": log_q, "top_teacher_logprob": v, "top_theta_logprob": u}
        assert float(log_q[token]) == pytest.approx(wanted, abs=TOLERANCES["logprob"])
        for name, row in expected.items():
            assert getattr(records, name)[i][place] == pytest.approx(float(row[token]), abs=TOLERANCES["logprob"])


def metrics(llm: LLM) -> dict[str, Any]:
    return {
        metric.name.removeprefix("vllm:optimal_sampling_"): metric
        for metric in llm.get_metrics()  # type: ignore[attr-defined]
        if re.search("optimal_sampling|num_preemptions|num_accepted_tokens$", metric.name)
    }


@pytest.fixture(scope="module")
def llm(engines: Callable[..., LLM]) -> LLM:
    # Blocks for five of the six long requests below: the last ones are preempted when the first grow.
    return engines(num_speculative_tokens=K, num_gpu_blocks_override=31)


def long_batch() -> list[Case]:
    rng = random.Random(3)
    arguments: list[dict[str, Any]] = [
        {**KL_SYMMETRY, **ASKED, "return_top_k": 5},
        {**THETA_ALONE, **ASKED},
        {**BOUNDED, **ASKED, "return_top_k": 2},
        OPTED_OUT,
        {**TEACHER_ALONE, **ASKED},
        KL_SYMMETRY,
        {"teacher_only_tokens": 3, **ASKED, "return_top_k": 3},
    ]
    cases = [Case(token_ids(rng, 120 + i), token_ids(rng, 118 - 9 * i), given) for i, given in enumerate(arguments)]
    return [Case(case.prompt, None, OPTED_OUT) if case.arguments == OPTED_OUT else case for case in cases]


def test_sampled_beside_neighbours_with_preemption(llm: LLM, reference: Reference) -> None:
    """Drafts accepted and rejected, preempted requests, neighbours that opted out or asked for no record."""
    cases = long_batch()
    before = metrics(llm)
    outputs = generate(llm, cases, max_tokens=16, temperature=0.9, top_p=0.95)
    after = metrics(llm)
    assert after["vllm:num_preemptions"].value > before["vllm:num_preemptions"].value
    alphas: list[float] = []
    for case, output in zip(cases, outputs, strict=True):
        completion = output.outputs[0]
        if not case.arguments.get("return_alpha"):
            assert completion.optimal_sampling is None
            continue
        check(reference, case, list(completion.token_ids), completion.optimal_sampling)
        alphas += completion.optimal_sampling.alpha[case.arguments.get("teacher_only_tokens", 0) :]

    # Drawn are the tokens returned, and at most K behind max_tokens; a preemption may drop a round of a request.
    def grown(name: str, field: str = "value") -> float:
        return getattr(after[name], field) - getattr(before[name], field)

    mixed = len(alphas) + 16  # and one request that asked for no record
    slack = (K + 1) * (len(cases) + int(grown("vllm:num_preemptions")))
    assert mixed <= grown("mixed_tokens") <= mixed + slack
    assert 16 + 3 <= grown("plain_tokens") <= 16 + 3 + slack
    assert grown("fallback_tokens") == 0
    assert grown("alpha", "count") == grown("kl", "count") == grown("mixed_tokens")
    for edge in ("0.05", "0.3", "0.4", "0.95", "1.0"):
        least = sum(alpha <= float(edge) + 1e-6 for alpha in alphas)
        found = after["alpha"].buckets[edge] - before["alpha"].buckets[edge]
        assert least <= found <= least + 16 + slack
    assert sum(alphas) <= grown("alpha", "sum") <= sum(alphas) + 16 + slack


def test_metrics_of_a_known_alpha(llm: LLM) -> None:
    before = metrics(llm)
    generate(llm, [Case([5, 6, 7], [8, 9], {"alpha_method": "fixed", "alpha": 0.35, **ASKED})], max_tokens=6)
    after = metrics(llm)
    count = after["alpha"].count - before["alpha"].count
    assert count >= 6
    assert after["alpha"].sum - before["alpha"].sum == pytest.approx(0.35 * count, rel=1e-5)
    assert after["alpha"].buckets["0.3"] == before["alpha"].buckets["0.3"]
    assert after["alpha"].buckets["0.4"] - before["alpha"].buckets["0.4"] == count


def test_stops_inside_accepted_drafts(llm: LLM, reference: Reference) -> None:
    """What lies behind a stop token, a stop string or max_tokens has no record either."""
    case = Case([5, 6, 7, 8], [9, 10, 11], {**THETA_ALONE, **ASKED})  # theta's drafts against theta: all accepted
    tokens = greedy_tokens(reference, Case(case.prompt, case.theta_prompt, THETA_ALONE), 12)
    accepted_before = metrics(llm)["vllm:spec_decode_num_accepted_tokens"].value
    text = llm.get_tokenizer().decode(tokens)
    stop_string = re.findall(r"[ -~]{2}", text)[-1]
    options: list[dict[str, Any]] = [
        *({"max_tokens": 12, "stop_token_ids": [tokens[end]]} for end in (3, 4, 5)),
        {"max_tokens": 12, "stop": [stop_string]},
        *({"max_tokens": length} for length in (1, 6, 7)),
    ]
    for option in options:
        (output,) = generate(llm, [case], temperature=0.0, ignore_eos=False, **option)
        found = list(output.outputs[0].token_ids)
        assert found == tokens[: len(found)]
        check(reference, case, found, output.outputs[0].optimal_sampling)
    assert metrics(llm)["vllm:spec_decode_num_accepted_tokens"].value - accepted_before >= 2 * K * len(options) // 2


def test_several_samples_streamed(llm: LLM, reference: Reference) -> None:
    """n=2, in deltas, in growing outputs, and in deltas that nobody has fetched until the end."""
    case = Case([15, 6, 7, 8], [9, 10], {**KL_SYMMETRY, **ASKED})
    kinds = {"delta": RequestOutputKind.DELTA, "growing": RequestOutputKind.CUMULATIVE, "late": RequestOutputKind.DELTA}
    for name, kind in kinds.items():
        params = SamplingParams(
            n=2, max_tokens=7, seed=4, ignore_eos=True, output_kind=kind, extra_args=case.extra_args()
        )
        llm.llm_engine.add_request(name, {"prompt_token_ids": case.prompt}, params)
    tokens: dict[tuple[str, int], list[int]] = {}
    records: dict[tuple[str, int], TokenRecords] = {}
    late = RequestOutputCollector(RequestOutputKind.DELTA, "late")
    steps = 0
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            if output.request_id == "late":
                late.put(output)
                continue
            for sample in output.outputs:
                assert len(sample.optimal_sampling) == len(sample.token_ids)
                key = (output.request_id, sample.index)
                if output.request_id == "growing":
                    tokens[key], records[key] = list(sample.token_ids), sample.optimal_sampling
                else:
                    steps += 1
                    tokens.setdefault(key, []).extend(sample.token_ids)
                    records.setdefault(key, TokenRecords()).extend(sample.optimal_sampling)
    assert steps > 2
    for sample in late.get_nowait().outputs:
        tokens["late", sample.index], records["late", sample.index] = list(sample.token_ids), sample.optimal_sampling
    assert len(tokens) == 6
    for key, found in tokens.items():
        assert len(found) == 7
        check(reference, case, found, records[key])


def test_a_session_that_asks_now_and_then(llm: LLM, reference: Reference) -> None:
    """Input that is streamed; what is drawn after each part ends among accepted drafts, which are no part of the session."""
    rng = random.Random(12)
    asked = {**THETA_ALONE, **ASKED}
    arguments = [THETA_ALONE, asked, OPTED_OUT, {**asked, "return_top_k": 2}, asked]
    parts = [Part(token_ids(rng, 40 - 7 * i), given) for i, given in enumerate(arguments)]
    run_session(llm, "session", parts, max_tokens=7)  # 1 from the prompt, then up to 4 at once
    for i, part in enumerate(parts):
        records = TokenRecords()
        for record in part.records:
            if record is not None:
                records.extend(record)
        if part.arguments.get("return_alpha"):
            case = Case(context_of(parts[:i]) + part.prompt, None, part.arguments)
            check(reference, case, part.tokens, records)
            assert [len(top) for top in records.top_logprob] == ([2] * 7 if i == 3 else [])
        elif i:
            assert len(records) == 7 and all(isnan(value) for value in records.alpha + records.logprob)


def test_deltas_of_a_session_that_nobody_has_fetched() -> None:
    """Merged, they have a record for each token, though only the later ones were asked for."""
    completions = [SimpleNamespace(index=0, token_ids=[1, 2], optimal_sampling=None)]
    later = TokenRecords.from_rows(np.zeros((3, len(RECORD_FIELDS)), dtype=np.float32))
    merge_records(completions, [SimpleNamespace(index=0, token_ids=[3, 4, 5], optimal_sampling=later)])
    merged = completions[0].optimal_sampling
    assert [isnan(alpha) for alpha in merged.alpha] == [True] * 2 + [False] * 3 and merged.fallback == [False] * 5


# Over HTTP, with the engine core in a process of its own


class Server:
    def __init__(self, teacher: str, theta: str, log: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = {"dtype": "float32", "max-model-len": "256", "max-num-seqs": "4", "block-size": "32"}
        options |= {name: str(share) for name, share in GPU_SHARE.items()}
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", teacher, "--port", str(self.port)]
        command += [word for name, value in options.items() for word in (f"--{name}", value)]
        command += ["--enforce-eager", "--kv-cache-memory-bytes", str(1 << 24), "--served-model-name", "pair"]
        command += ["--logits-processor", "optimal_sampling", "--speculative-config"]
        command += [json.dumps({"model": theta, "num_speculative_tokens": K})]
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/health")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str, body: dict[str, Any] | None = None) -> str:
        data = None if body is None else json.dumps({"model": "pair", **body}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.read().decode()

    def chunks(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        lines = self.get(path, {**body, "stream": True}).split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.fixture(scope="module")
def server(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(*pair, tmp_path_factory.mktemp("server") / "log")
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)


def as_records(choice: dict[str, Any]) -> TokenRecords:
    assert set(choice["optimal_sampling"]) in (set(RECORD_FIELDS), {*RECORD_FIELDS, *TOP_FIELDS})
    return TokenRecords(**choice["optimal_sampling"])


@pytest.mark.parametrize("top", [{}, {"return_top_k": 4}], ids=["", "top"])
def test_over_http(server: Server, reference: Reference, top: dict[str, int]) -> None:
    case = Case([15, 6, 7, 8], [9, 10], {**KL_SYMMETRY, **ASKED, **top})
    asked = {"max_tokens": 9, "n": 2, "seed": 3, "ignore_eos": True, "return_token_ids": True}
    body = {"prompt": case.prompt, **asked, "vllm_xargs": case.extra_args()}
    for choice in json.loads(server.get("/v1/completions", body))["choices"]:
        check(reference, case, choice["token_ids"], as_records(choice))

    tokens: dict[int, list[int]] = {0: [], 1: []}
    records = {0: TokenRecords(), 1: TokenRecords()}
    for chunk in server.chunks("/v1/completions", body):
        (choice,) = chunk["choices"]
        tokens[choice["index"]] += choice["token_ids"]
        records[choice["index"]].extend(as_records(choice))
        assert len(tokens[choice["index"]]) == len(records[choice["index"]])
    for index in (0, 1):
        check(reference, case, tokens[index], records[index])

    # A stop string: vLLM draws on until the front end has seen it, in one round or the next.
    text = json.loads(server.get("/v1/completions", {**body, "n": 1}))["choices"][0]["text"]
    stop = re.findall(r"[ -~]{2}", text)[0]
    (choice,) = json.loads(server.get("/v1/completions", {**body, "n": 1, "stop": stop}))["choices"]
    assert choice["stop_reason"] == stop
    check(reference, case, choice["token_ids"], as_records(choice))

    for unasked in ({}, {"optimal_sampling": False}):
        (choice,) = json.loads(server.get("/v1/completions", {**body, "n": 1, "vllm_xargs": unasked}))["choices"]
        assert "optimal_sampling" not in choice


def test_chat_over_http(server: Server, reference: Reference) -> None:
    messages = [{"role": "user", "content": "two and two"}]
    extra = {"theta_prompt_token_ids": [9, 10], "return_alpha": True}
    body = {"messages": messages, "max_tokens": 9, "ignore_eos": True, "return_token_ids": True, "vllm_xargs": extra}
    response = json.loads(server.get("/v1/chat/completions", body))
    case = Case(response["prompt_token_ids"], [9, 10], {**KL_SYMMETRY, **ASKED})
    (choice,) = response["choices"]
    check(reference, case, choice["token_ids"], as_records(choice))

    tokens: list[int] = []
    records = TokenRecords()
    for chunk in server.chunks("/v1/chat/completions", body):
        (choice,) = chunk["choices"]
        tokens += choice.get("token_ids") or []
        if "optimal_sampling" in choice:
            records.extend(as_records(choice))
        assert len(tokens) == len(records)
    check(reference, case, tokens, records)


def test_metrics_over_http(server: Server) -> None:
    server.get("/v1/completions", {"prompt": [5, 6], "max_tokens": 5, "ignore_eos": True})
    server.get(
        "/v1/completions",
        {"prompt": [5, 6], "max_tokens": 4, "ignore_eos": True, "vllm_xargs": {"optimal_sampling": False}},
    )
    exposed = server.get("/metrics")
    lines = [line for line in exposed.splitlines() if line.startswith("vllm:optimal_sampling")]
    values = {re.sub(r'model_name="[^"]*"|engine="0"|[{},]', "", line.rsplit(" ", 1)[0]): line for line in lines}
    number = {name: float(line.rsplit(" ", 1)[1]) for name, line in values.items()}
    assert all('engine="0"' in line and 'model_name="pair"' in line for line in lines)
    assert number["vllm:optimal_sampling_mixed_tokens_total"] >= 5
    assert number["vllm:optimal_sampling_plain_tokens_total"] >= 4
    assert number["vllm:optimal_sampling_fallback_tokens_total"] == 0
    for name in ("alpha", "kl"):
        assert number[f"vllm:optimal_sampling_{name}_count"] == number["vllm:optimal_sampling_mixed_tokens_total"]
    dashboard = (Path(__file__).parents[2] / "docs/grafana.json").read_text()
    shown = set(re.findall(r"vllm:\w+", dashboard))
    assert len(shown) > 10
    assert shown <= set(re.findall(r"^vllm:\w+", exposed, re.M))
