"""An image over HTTP: the teacher sees it, theta reads a text of its own."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer

from support.cases import TEACHER_ALONE, THETA_ALONE, Case
from support.multimodal_models import image_inputs, random_image, save_multimodal_model
from support.reference_models import Reference, greedy_tokens
from support.servers import SMALL_OPTIONS, VLLM, Server, start_server

pytestmark = pytest.mark.full

ALLOWED = list(range(1, 400))
"""Nothing that stands for an image: transformers would look for one more."""
WORDS = "the quick brown fox"
THETA_MESSAGES = [{"role": "user", "content": "two and two"}]
MAX_TOKENS = 8


@pytest.fixture(scope="module", params=["qwen2_5_vl", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_multimodal_model(tmp_path_factory.mktemp("models") / "model", request.param)


@pytest.fixture(scope="module")
def image_server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm serve` of one model that is teacher and theta."""
    command = [
        *VLLM,
        "serve",
        model,
        "--served-model-name=teacher",
        "--logits-processors=optimal_sampling",
        *SMALL_OPTIONS,
    ]
    settings = json.dumps({"optimal_sampling": {"theta": "self"}})
    log = tmp_path_factory.mktemp("server") / "server.log"
    server = start_server([*command, f"--additional-config={settings}"], log)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return random_image(5)


@pytest.fixture(scope="module")
def reference(model: str) -> Reference:
    return Reference(model, model)


def body(image: Image.Image | None, xargs: dict[str, Any]) -> dict[str, Any]:
    """A greedy chat with a picture in it, as OpenAI's API has it."""
    content: list[dict[str, Any]] = [{"type": "text", "text": WORDS}]
    if image is not None:
        file = io.BytesIO()
        image.save(file, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return {
        "model": "teacher",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "allowed_token_ids": ALLOWED,
        "return_token_ids": True,
        "vllm_xargs": xargs,
    }


@pytest.mark.parametrize("alpha", [{}, TEACHER_ALONE, THETA_ALONE], ids=["q*", "the teacher", "theta"])
def test_the_teacher_sees_the_image_and_theta_its_own_text(
    alpha: dict[str, Any], image_server: Server, model: str, image: Image.Image, reference: Reference
) -> None:
    xargs = {"theta_messages": json.dumps(THETA_MESSAGES), "return_alpha": True, **alpha}
    status, answer = image_server.send("/v1/chat/completions", body(image, xargs))
    assert status == 200, answer
    (choice,) = answer["choices"]
    theta_prompt = AutoTokenizer.from_pretrained(model).apply_chat_template(
        THETA_MESSAGES, add_generation_prompt=True, return_dict=False
    )
    prompt = answer["prompt_token_ids"]
    assert prompt.count(reference.teacher.config.image_token_id) == 4
    expected = greedy_tokens(
        reference, Case(prompt, theta_prompt, alpha), MAX_TOKENS, image_inputs(model, image), ALLOWED
    )
    assert choice["token_ids"] == expected
    assert choice["message"]["content"]
    assert len(choice["optimal_sampling"]["alpha"]) == MAX_TOKENS


def test_a_text_for_theta_by_itself(image_server: Server, model: str, image: Image.Image, reference: Reference) -> None:
    theta_prompt = "the answer is"
    xargs = {"theta_prompt": theta_prompt, "alpha_method": "fixed", "alpha": 0.0}
    status, answer = image_server.send("/v1/chat/completions", body(image, xargs))
    assert status == 200, answer
    tokens = AutoTokenizer.from_pretrained(model).encode(theta_prompt)
    expected = greedy_tokens(reference, Case(tokens, tokens, THETA_ALONE), MAX_TOKENS, allowed=ALLOWED)
    assert answer["choices"][0]["token_ids"] == expected


def test_an_image_without_a_prompt_for_theta_is_a_bad_request(image_server: Server, image: Image.Image) -> None:
    status, answer = image_server.send("/v1/chat/completions", body(image, {}))
    assert status == 400
    assert answer["error"]["message"].startswith(
        "the prompt has more than text (image), and theta, without a prompt of its own, would read it too, which reads text "
        "only. Give one of theta_prompt, theta_prompt_token_ids, theta_messages in vllm_xargs"
    )
    # The server is as well as before: without an image, and without q*, the same chat is answered.
    for picture, xargs in ((None, {}), (image, {"optimal_sampling": False})):
        status, answer = image_server.send("/v1/chat/completions", body(picture, xargs))
        assert status == 200, answer
        assert set(answer["choices"][0]["token_ids"]) <= set(ALLOWED)
