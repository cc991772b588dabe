"""New weights for the theta of a `vllm serve`, by the page's own program and by vLLM's weight transfer; rows in float64."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from docs.blocks import blocks
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from support.example_pair import TEACHER, TEACHER_MESSAGES, THETA, THETA_MESSAGES, chat_tokens
from support.folder_transfer import BACKEND
from support.reference_models import Reference, expected_log_q
from support.row_audit import MAX_LOG_PROB_ERROR
from support.servers import SMALL_OPTIONS, Server, start_server

PROMPTS = chat_tokens(TEACHER, TEACHER_MESSAGES), chat_tokens(THETA, THETA_MESSAGES)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The page's second command, which is the first with more options, and a transfer of weights that needs no GPU."""
    first, command = blocks("training.md", "bash")
    assert command.text.startswith(first.text.rstrip())
    options = [
        *SMALL_OPTIONS,
        "--worker-extension-cls",
        "support.folder_transfer.Extension",
        "--weight-transfer-config",
        json.dumps({"backend": BACKEND}),
    ]
    tests = Path(__file__).resolve().parents[1]
    text = f'export PYTHONPATH="{tests}:$PYTHONPATH"\n{command.prepared().rstrip()} "$@"'
    folder = tmp_path_factory.mktemp("server")
    server = start_server(["bash", "-c", text, "bash", *options], folder / "server.log")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def program(server: Server) -> dict[str, Any]:
    """The names of the page's program."""
    (block,) = (block for block in blocks("training.md", "python") if "SERVER" in block.text)
    names: dict[str, Any] = {"__name__": "program", "__program__": block.prepared(server.url)}
    exec(compile(names["__program__"], block.name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.nn.Module]:
    """Theta as it is, and further on its way in two directions."""
    made = {name: AutoModelForCausalLM.from_pretrained(THETA, dtype=torch.float32) for name in ("first", "a", "b")}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        for parameter in made[name].parameters():
            parameter.data += 0.2 * parameter.std() * torch.randn_like(parameter)
    return made


def drawn(server: Server, max_tokens: int = 8) -> dict[str, Any]:
    """A completion of one prompt, always the same, with its record."""
    body = {
        "model": TEACHER,
        "prompt": PROMPTS[0],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "return_token_ids": True,
        "vllm_xargs": {"theta_prompt_token_ids": PROMPTS[1], "return_alpha": True},
    }
    status, answer = server.send("/v1/completions", body)
    assert status == 200, answer
    return answer["choices"][0]


def error_under(model: torch.nn.Module, choice: dict[str, Any]) -> float:
    """The largest difference of the record's `theta_logprob` from the model in float64, in nats."""
    tokens = choice["token_ids"]
    with torch.inference_mode():
        logits = model.double()(torch.tensor([[*PROMPTS[1], *tokens]])).logits[0, len(PROMPTS[1]) - 1 : -1]
    model.float()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return (
        (torch.tensor(choice["optimal_sampling"]["theta_logprob"], dtype=torch.float64) - expected).abs().max().item()
    )


def is_at_work(server: Server) -> bool:
    lines = server.send("/metrics")[1].splitlines()
    return any(line.startswith("vllm:num_requests_running{") and line.endswith(" 1.0") for line in lines)


def test_the_pages_program(
    server: Server, program: dict[str, Any], students: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    assert error_under(students["first"], drawn(server)) < MAX_LOG_PROB_ERROR
    for version, name in enumerate("ab", 1):
        program["update_theta"](students[name], str(tmp_path / name), version)
        choice = drawn(server)  # the same prompt: blocks of the theta before are no longer found
        assert error_under(students[name], choice) < MAX_LOG_PROB_ERROR
        assert error_under(students["first"], choice) > 100 * MAX_LOG_PROB_ERROR
        assert server.send("/weight_info") == (200, {"weight_version": str(version)})


def test_the_program_as_it_stands(
    server: Server, program: dict[str, Any], students: dict[str, Any], tmp_path: Path
) -> None:
    """Run as a file, it gives theta the weights that it had at first."""
    (tmp_path / "program.py").write_text(program["__program__"])
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert error_under(students["first"], drawn(server)) < MAX_LOG_PROB_ERROR


def test_a_request_under_way_ends_on_the_old_weights(
    server: Server, program: dict[str, Any], students: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    program["update_theta"](students["a"], str(tmp_path / "a"), 3)
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(drawn(server, max_tokens=60)))
    asking.start()
    while not is_at_work(server):
        assert asking.is_alive(), "the request ended before the update began; give it more tokens"
    program["update_theta"](students["b"], str(tmp_path / "b"), 4)
    asking.join(120)
    assert len(answers[0]["token_ids"]) == 60
    assert error_under(students["a"], answers[0]) < MAX_LOG_PROB_ERROR
    assert error_under(students["b"], drawn(server)) < MAX_LOG_PROB_ERROR


def save_adapter_like(folder: Path) -> Path:
    folder.mkdir()
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 1)}, folder / "adapter_model.safetensors")
    return folder


def test_wrong_weights_are_refused(
    server: Server, program: dict[str, Any], students: dict[str, torch.nn.Module], tmp_path: Path
) -> None:
    program["update_theta"](students["a"], str(tmp_path / "a"), 5)
    with pytest.raises(ValueError, match="has no parameter named model") as caught:
        program["update_theta"](AutoModelForCausalLM.from_pretrained(TEACHER), str(tmp_path / "teacher"), 6)
    assert "\n" not in str(caught.value)

    def refusal(folder: Path) -> str:
        (sentence,) = program["post"]("/collective_rpc", method="replace_theta", args=[str(folder)])["results"]
        return sentence

    assert "is no folder with weights (*.safetensors) on the machine of this engine" in refusal(tmp_path / "nowhere")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    assert re.search("the weights in .*broken' cannot be read .*; save the model again", refusal(tmp_path / "broken"))
    assert "theta has no adapter to replace" in refusal(save_adapter_like(tmp_path / "adapter"))
    assert server.is_alive()
    assert error_under(students["a"], drawn(server)) < MAX_LOG_PROB_ERROR


def test_weight_transfer(server: Server, program: dict[str, Any], students: dict[str, Any], tmp_path: Path) -> None:
    """vLLM's endpoints in the page's order; the transfer itself reads a folder."""
    students["b"].save_pretrained(tmp_path)
    post = program["post"]
    post("/init_weight_transfer_engine", init_info={})
    post("/pause?mode=wait")
    post("/start_draft_weight_update")
    post("/update_weights", update_info={"path": str(tmp_path)})
    post("/finish_weight_update", weight_version="transferred")
    post("/resume")
    assert error_under(students["b"], drawn(server)) < MAX_LOG_PROB_ERROR
    assert server.send("/weight_info")[1] == {"weight_version": "transferred"}


def test_trls_server_mode(server: Server, students: dict[str, Any], tmp_path: Path) -> None:
    """TRL's client gets tokens of q* with their log-probabilities, and its updates are theta's."""
    vllm_client = pytest.importorskip("trl.generation.vllm_client", reason="the extra `trl` is not installed")
    client = vllm_client.VLLMClient(base_url=server.url)
    assert client.get_server_info()["weight_transfer_config"] is not None
    client._post(f"{server.url}/init_weight_transfer_engine", json={"init_info": {}})
    for name in "ba":
        students[name].save_pretrained(tmp_path / name)
        with client.weight_update():
            client._post(f"{server.url}/update_weights", json={"update_info": {"path": str(tmp_path / name)}})
        client.reset_prefix_cache()
        reference = Reference(TEACHER, str(tmp_path / name))
        output = client.generate(list(PROMPTS), n=2, max_tokens=8, generation_kwargs={"vllm_xargs": {"alpha_max": 0.3}})
        assert output["prompt_ids"] == list(map(list, PROMPTS))
        for number, (tokens, logprobs) in enumerate(zip(output["completion_ids"], output["logprobs"], strict=True)):
            for at, (token, (logprob,)) in enumerate(zip(tokens, logprobs, strict=True)):
                text = [*PROMPTS[number // 2], *tokens[:at]]
                rows = (reference.logits(model, text) for model in (reference.teacher, reference.theta))
                expected = expected_log_q(*rows, alpha_max=0.3)[token].item()
                assert abs(logprob - expected) < MAX_LOG_PROB_ERROR
    assert error_under(students["a"], drawn(server)) < MAX_LOG_PROB_ERROR
    assert error_under(students["b"], drawn(server)) > 100 * MAX_LOG_PROB_ERROR
