"""A multimodal theta: what is no text is refused of its prompts, and its chat template is found and filled as vLLM does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreRequest

from support.multimodal_models import IDS, image_prompt, save_multimodal_model
from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.config.refusals import check_supported
from vllm_optimal_sampling.front_end.admission import RequestResolver

PARTS_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
SELF = {"speculative_config": None, "additional_config": {"optimal_sampling": {"theta": "self"}}}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_multimodal_model(tmp_path_factory.mktemp("models") / "gemma3", "gemma3")


@pytest.fixture(scope="module")
def resolver(build_config: Callable[..., Any], gemma: str) -> RequestResolver:
    return RequestResolver(build_config(model=gemma, **SELF))


def resolve(resolver: RequestResolver, arguments: dict[str, Any], image: bool = True) -> list[int] | None:
    """Theta's prompt, of a request with an image."""
    request = EngineCoreRequest(
        request_id="request",
        prompt_token_ids=image_prompt("gemma3", [5], [6]),
        mm_features=[SimpleNamespace(modality="image")] if image else [],  # type: ignore[list-item]
        sampling_params=SamplingParams(max_tokens=4, extra_args=arguments),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    resolver.resolve(request)
    assert request.sampling_params is not None
    return (request.sampling_params.extra_args or {}).get("theta_prompt_token_ids")


def test_theta_reads_a_text_of_its_own_beside_an_image(resolver: RequestResolver) -> None:
    assert resolve(resolver, {"theta_prompt_token_ids": [9, 8]}) == [9, 8]
    assert resolve(resolver, {"optimal_sampling": False}) is None
    assert resolve(resolver, {}, image=False) is None


def test_theta_does_not_read_the_teachers_image(resolver: RequestResolver) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        resolve(resolver, {})
    assert caught.value.args[0] == (
        "the prompt has more than text (image), and theta, without a prompt of its own, would read it too, which reads text "
        "only. Give one of theta_prompt, theta_prompt_token_ids, theta_messages in vllm_xargs (in Python: extra_args), or "
        "optimal_sampling=false for the teacher alone"
    )


def test_thetas_prompt_has_no_placeholder(resolver: RequestResolver) -> None:
    token_id = IDS["gemma3"]["image_token"]
    with pytest.raises(VLLMValidationError) as caught:
        resolve(resolver, {"theta_prompt_token_ids": [9, token_id]})
    assert caught.value.args[0] == (
        f"theta_prompt_token_ids has token id {token_id} at position 1, a placeholder for image data, and theta reads text "
        "only; leave it out, and say in words what theta is to know"
    )


def test_a_template_of_parts_writes_the_text(build_config: Callable[..., Any], gemma: str) -> None:
    """Over a plain text it would write nothing."""
    settings = {"theta": "self", "theta_chat_template": PARTS_TEMPLATE}
    config = build_config(model=gemma, **SELF | {"additional_config": {"optimal_sampling": settings}})
    resolver = RequestResolver(config)
    ids = resolve(resolver, {"theta_messages": [{"role": "user", "content": "the lazy fox"}]})
    assert resolver.prompts._tokenizer("theta_messages").decode(ids) == "<user>the lazy fox"


def test_a_template_of_the_processor_is_found(build_config: Callable[..., Any], gemma: str, tmp_path: Path) -> None:
    """Older repositories have it in a file that tokenizers do not read."""
    model = save_multimodal_model(tmp_path / "gemma3", "gemma3")
    template = (Path(model) / "chat_template.jinja").rename(tmp_path / "template").read_text()
    (Path(model) / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    resolver = RequestResolver(build_config(model=model, **SELF))
    ids = resolve(resolver, {"theta_messages": [{"role": "user", "content": "the fox"}]})
    assert resolver.prompts._tokenizer("theta_messages").decode(ids) == "user: the foxassistant: "


def test_adapters_of_a_vision_tower_are_refused(build_config: Callable[..., Any], gemma: str) -> None:
    config = build_config(model=gemma, enable_lora=True, max_loras=2, **SELF)
    check_supported(config)
    config.lora_config.enable_tower_connector_lora = True
    with pytest.raises(UnsupportedEngineError) as caught:
        check_supported(config)
    assert str(caught.value) == (
        "optimal sampling cannot start: adapters of what reads images are not shown exact; drop "
        "--enable-tower-connector-lora."
    )
