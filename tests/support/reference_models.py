"""What vLLM is held against: both models in float64 by transformers alone, q* by bisection, greedy tokens by brute force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache
from vllm_optimal_sampling.kernels import Method

from support.cases import Case


class Float8Cache(DynamicCache):
    """A KV cache of float8 (e4m3) at a scale of one: rounded to the nearest on a GPU, towards zero by vLLM's CPU build."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().update(_float8(key_states), _float8(value_states), *args, **kwargs)


def _float8(states: torch.Tensor) -> torch.Tensor:
    rounded = states.to(torch.float8_e4m3fn)
    if not torch.cuda.is_available():
        nearer_zero = rounded.view(torch.uint8) - (rounded.to(states.dtype).abs() > states.abs()).to(torch.uint8)
        rounded = nearer_zero.view(torch.float8_e4m3fn)
    return rounded.to(states.dtype)


class ReferenceModels(Protocol):
    """What an audit compares an engine's rows with."""

    teacher: Any
    theta: Any

    def logits(
        self, model: Any, tokens: Sequence[int], image: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits [vocab] of `model`, the teacher or theta, after `tokens`, up to a constant, in float64."""


class Reference:
    """Both models in float64, and nothing of vLLM; with `float8_cache`, keys and values as float8 keeps them."""

    def __init__(self, teacher: str, theta: str, float8_cache: bool = False):
        self.float8_cache = float8_cache
        # Experts one by one: torch's grouped multiplication knows no float64.
        options = {"dtype": torch.float64, "experts_implementation": "eager"}
        self.teacher = model_class(teacher).from_pretrained(teacher, **options).eval()
        self.theta = model_class(theta).from_pretrained(theta, **options).eval()
        for module in (*self.teacher.modules(), *self.theta.modules()):
            # vLLM's Transformers backend makes transformers' classes ask for this; models made before have none.
            module.do_not_compile = True
        self._known: dict[tuple[int, int | None, tuple[int, ...]], torch.Tensor] = {}

    @torch.inference_mode()
    def logits(
        self, model: Any, tokens: Sequence[int], image: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits [vocab] after `tokens`, in float64. A sequence's prefixes are kept, so trajectories cost one pass.

        Args:
            model: one of the two.
            tokens: with those that stand for `image`.
            image: as `multimodal_models.image_inputs` or `video_inputs` gives it, one object for all calls with it.
        """
        source = (id(model), None if image is None else id(image))
        key = (*source, tuple(tokens))
        if key not in self._known:
            ids = torch.tensor([list(tokens)])
            options: dict[str, Any] = {"past_key_values": Float8Cache()} if self.float8_cache else {}
            if image is not None:
                options |= image
                if model.config.get_text_config().rope_parameters.get("mrope_section"):
                    is_video = "video_grid_thw" in image
                    stands_for_it = model.config.video_token_id if is_video else model.config.image_token_id
                    options["mm_token_type_ids"] = (ids == stands_for_it).int() * (1 + is_video)
            rows = model(ids, **options).logits[0]
            for length in range(len(tokens), 0, -1):
                prefix = (*source, tuple(tokens[:length]))
                if prefix in self._known:
                    break
                self._known[prefix] = rows[length - 1]
        return self._known[key]


def model_class(model: str) -> Any:
    """The class of transformers that loads a model, which reads text, or images too."""
    has_images = hasattr(AutoConfig.from_pretrained(model), "vision_config")
    return AutoModelForImageTextToText if has_images else AutoModelForCausalLM


def expected_log_q(
    teacher: torch.Tensor,  # [vocab] float64 logits
    theta: torch.Tensor,  # [vocab] float64 logits
    method: float = Method.KL_SYMMETRY,
    alpha: float = 0.5,
    alpha_min: float = 0.0,
    alpha_max: float = 1.0,
) -> torch.Tensor:
    method = Method(int(method))
    if method not in (Method.KL_SYMMETRY, Method.FIXED):
        raise NotImplementedError(
            f"only kl_symmetry and fixed are written down here; kernels.reference has {method.name}"
        )
    u, v = theta.log_softmax(-1), teacher.log_softmax(-1)
    low, high = (0.0, 1.0) if method is Method.KL_SYMMETRY else (alpha,) * 2
    while high - low > 1e-12:  # E_q[log teacher - log theta] grows with alpha; KL symmetry is where it is 0
        middle = (low + high) / 2
        gap = (torch.lerp(u, v, middle).softmax(-1) * (v - u)).sum()
        low, high = (low, middle) if gap > 0 else (middle, high)
    alpha = min(max((low + high) / 2, alpha_min), alpha_max)
    return torch.lerp(u, v, alpha).log_softmax(-1)


def greedy_tokens(
    reference: Reference,
    case: Case,
    max_tokens: int,
    image: Mapping[str, torch.Tensor] | None = None,
    allowed: Sequence[int] | None = None,
    supposed: Sequence[int] = (),
) -> list[int]:
    """The tokens of a greedy request, one float64 forward of each model at a time.

    Args:
        reference: both models.
        case: its prompt has the tokens that stand for `image`.
        max_tokens: of the text.
        image: as `Reference.logits` takes it.
        allowed: the only tokens that may be drawn; None: all.
        supposed: what the tokens may be, such as what an engine drew. The rows behind all of them are then computed in one
            forward; as far as they are wrong it is one at a time again, so they change nothing but the time.
    """
    arguments = dict(case.arguments)
    enabled = arguments.pop("optimal_sampling", True)
    if "alpha_method" in arguments:
        arguments["method"] = Method[arguments.pop("alpha_method").upper()]
    prompt = case.prompt if case.theta_prompt is None else case.theta_prompt
    supposed = list(supposed)[: max_tokens - 1]
    if supposed:
        reference.logits(reference.teacher, [*case.prompt, *supposed], image)
        if enabled:
            reference.logits(reference.theta, [*prompt, *supposed])
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        log_q = reference.logits(reference.teacher, [*case.prompt, *tokens], image)
        if enabled:
            theta = reference.logits(reference.theta, [*prompt, *tokens])
            shared = min(len(log_q), len(theta))  # where the padded vocabularies differ, only the ids of both have mass
            log_q = expected_log_q(log_q[:shared], theta[:shared], **arguments)
        best = log_q.argmax() if allowed is None else allowed[int(log_q[list(allowed)].argmax())]
        tokens.append(int(best))
    return tokens
