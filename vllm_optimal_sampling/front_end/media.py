"""Theta reads text only: an image of the teacher's prompt is no part of its own, and nothing in it stands for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_optimal_sampling.params import THETA_PROMPTS, ArgumentError, OptimalSamplingParams

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.v1.engine import EngineCoreRequest

MEDIA = ("image", "video", "audio")


def check_media(request: EngineCoreRequest, params: OptimalSamplingParams) -> None:
    """Refuse a request of which theta would read the teacher's prompt, with an image or the like in it.

    Raises:
        ArgumentError: such a request.

    """
    if request.mm_features and params.optimal_sampling and params.theta_prompt_argument is None:
        raise ArgumentError(
            "prompt",
            f"the prompt has more than text ({request.mm_features[0].modality}), and theta, without a prompt of its own, would "
            f"read it too, which reads text only. Give one of {', '.join(THETA_PROMPTS)} in vllm_xargs (in Python: "
            "extra_args), or optimal_sampling=false for the teacher alone",
        )


def placeholders(theta: ModelConfig) -> dict[int, str]:
    """The tokens that theta's model reads as placeholders for other media than text, and for which."""
    config = theta.hf_config
    names = {f"{medium}_token_{suffix}": medium for medium in MEDIA for suffix in ("id", "index")}
    ids = {getattr(config, name, None): medium for name, medium in names.items()}
    return {token_id: medium for token_id, medium in ids.items() if token_id is not None}


def check_no_placeholder(name: str, ids: list[int], known: dict[int, str]) -> None:
    """Refuse a prompt for theta that was made for an image.

    Args:
        name: of the argument.
        ids: theta's prompt.
        known: see `placeholders`.

    Raises:
        ArgumentError: one of them is in the prompt.

    """
    for token_id in known.keys() & set(ids):
        raise ArgumentError(
            name,
            f"{name} has token id {token_id} at position {ids.index(token_id)}, a placeholder for {known[token_id]} data, and "
            "theta reads text only; leave it out, and say in words what theta is to know",
        )
