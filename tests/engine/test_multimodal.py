"""Models of multimodal classes: theta reads text, the teacher text and images, and every row is what transformers makes of it.

Where theta is the teacher itself a step is one forward of both, of embeddings in place of token ids, and for the Qwen family
of positions in three dimensions, which go on behind an image from another number than tokens would.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import LLM, RequestOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from support.adapters import save_adapter, save_merged
from support.cases import (
    KL_SYMMETRY,
    OPTED_OUT,
    TEACHER_ALONE,
    THETA_ALONE,
    Case,
    generate,
    mixed_batch,
    theta_prompts,
    token_ids,
)
from support.engines import engine_options, find_runner, scoring_options, stop_engine
from support.multimodal_models import (
    IDS,
    VIDEO_METADATA,
    image_inputs,
    image_prompt,
    random_image,
    random_video,
    save_image_tokenizer,
    save_multimodal_model,
    video_inputs,
)
from support.random_models import save_model
from support.reference_models import Reference, greedy_tokens, model_class
from support.row_audit import AuditError, Report, RowAudit
from vllm_optimal_sampling.config.errors import UnsupportedEngineError
from vllm_optimal_sampling.weights import update_theta
from vllm_optimal_sampling.worker.theta.text_inputs import TextInputs

TEXT = {"allowed_token_ids": list(range(1, 400))}
"""Nothing that is drawn stands for an image: transformers would look for one more. The audit's rows are those before that."""

NUM_BLOCKS = {"gemma3": 24}
"""Room for some of eight requests, so that those that grow preempt one another; windows take their own. Others: 16."""


class Images:
    """Two images, as vLLM is given them and as transformers reads them."""

    def __init__(self, model: str):
        self.first, self.second = random_image(1), random_image(2)
        self._inputs = {id(image): image_inputs(model, image) for image in (self.first, self.second)}

    def of(self, cases: list[Case], outputs: list[RequestOutput]) -> dict[str, Any]:
        """By request id, as the audit takes them."""
        return {
            f"{output.request_id}-": self._inputs[id(case.image)]
            for case, output in zip(cases, outputs, strict=True)
            if case.image is not None
        }

    def check_greedy(self, llm: LLM, reference: Reference, cases: list[Case]) -> None:
        """The greedy tokens of q* from an image and a text: the teacher's, theta's, and those between."""
        outputs = generate(llm, cases, max_tokens=8, temperature=0.0, **TEXT)
        for case, output in zip(cases, outputs, strict=True):
            whole = replace(case, prompt=output.prompt_token_ids or [])
            image = None if case.image is None else self._inputs[id(case.image)]
            tokens = list(output.outputs[0].token_ids)
            assert tokens == greedy_tokens(reference, whole, 8, image, TEXT["allowed_token_ids"], tokens), (
                case.arguments
            )

    def cases(self, family: str) -> list[Case]:
        """The same tokens with either image, theta's prompt shorter and longer, and an opt-out among them."""
        rng = random.Random(3)
        prompt, short = image_prompt(family, token_ids(rng, 50), token_ids(rng, 30)), token_ids(rng, 20)
        return [
            Case(prompt, short, KL_SYMMETRY, self.first),
            Case(prompt, short, KL_SYMMETRY, self.second),
            Case(prompt, token_ids(rng, 120), THETA_ALONE, self.first),
            Case(prompt, short, TEACHER_ALONE, self.second),
            Case(image_prompt(family, token_ids(rng, 2), token_ids(rng, 4)), short, KL_SYMMETRY, self.first),
            Case(prompt, None, OPTED_OUT, self.second),
        ]


def audited(llm: LLM, reference: Reference, cases: list[Case], images: Images, max_tokens: int) -> Report:
    with RowAudit(llm) as audit:
        outputs = generate(llm, cases, max_tokens=max_tokens, **TEXT)
    # A draft may stand for an image, though what is drawn does not: transformers would look for one more.
    stands_for_image = reference.teacher.config.image_token_id
    audit.rows = [row for row in audit.rows if stands_for_image not in row.tokens[row.prompt_len :]]
    report = audit.check(reference, theta_prompts(cases, outputs), images=images.of(cases, outputs))
    assert report.mixed > 0
    return report


@pytest.mark.parametrize(
    "family", ["gemma3", "qwen2_5_vl", *(pytest.param(f, marks=pytest.mark.full) for f in ("mistral3", "qwen3_vl"))]
)
def test_theta_is_the_teacher(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_multimodal_model(tmp_path / "model", family)
    images, reference = Images(model), Reference(model, model)
    llm = LLM(
        **scoring_options(
            model,
            drafts=2,
            max_num_batched_tokens=64,
            max_model_len=192,
            num_gpu_blocks_override=NUM_BLOCKS.get(family, 16),
            limit_mm_per_prompt={"video": 0},
        )
    )
    try:
        runner = find_runner(llm)
        assert runner.uses_inputs_embeds and runner.theta.offset is not None
        with_images = images.cases(family)
        # Prompts of 64 tokens a chunk: images lie in several chunks, and beside other requests' text.
        preempted = []
        preempt = Scheduler._preempt_request

        def listen(self: Scheduler, request: Request, *args: Any, **kwargs: Any) -> None:
            preempted.append(bool(request.mm_features))
            preempt(self, request, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(Scheduler, "_preempt_request", listen)
            report = audited(llm, reference, [*mixed_batch(seed=41, long=70)[:6], *with_images], images, max_tokens=16)
        assert set(report.by_draft_position) == {0, 1, 2}
        assert runner.theta.steps.fused > 0
        assert any(preempted)
        images.check_greedy(llm, reference, with_images[3:])
        # Once more, out of the prefix cache: the same tokens with the other image are other blocks.
        images.check_greedy(llm, reference, with_images[:3])
        with RowAudit(llm) as again:
            hits = generate(llm, with_images[:3], max_tokens=3, **TEXT)
        assert all(hit.num_cached_tokens for hit in hits)
        again.check(reference, theta_prompts(with_images[:3], hits), images=images.of(with_images[:3], hits))
        if family == "qwen2_5_vl":
            # What the audit would say of a fused step that counts the teacher's positions by tokens.
            set_positions = TextInputs.set_positions
            monkeypatch.setattr(TextInputs, "set_positions", lambda self, positions, *_: set_positions(self, positions))
            with pytest.raises(AuditError, match="the teacher's row"):
                audited(llm, reference, with_images, images, max_tokens=8)
    finally:
        stop_engine(llm)


@pytest.mark.parametrize(
    ("teacher", "theta", "drafts"),
    [
        ("gemma3", "gemma3", True),
        pytest.param("qwen2_5_vl", "qwen2_5_vl", True, marks=pytest.mark.full),
        pytest.param("qwen2_5_vl", "qwen2_5_vl", False, marks=pytest.mark.full),
        pytest.param("qwen2_5_vl", "qwen2", True, marks=pytest.mark.full),
        pytest.param("qwen2_5_vl", "qwen2", False, marks=pytest.mark.full),
    ],
)
def test_theta_is_another_model(teacher: str, theta: str, drafts: bool, tmp_path: Path) -> None:
    """One that could read images, or one of text alone."""
    models = (
        save_multimodal_model(tmp_path / "teacher", teacher, seed=1),
        _save_theta(tmp_path / "theta", theta, seed=2),
    )
    images, reference = Images(models[0]), Reference(*models)
    options = (engine_options if drafts else scoring_options)(
        *models, max_num_batched_tokens=64, limit_mm_per_prompt={"video": 0}
    )
    llm = LLM(**options)
    try:
        # Theta has no use for what reads images.
        names = [name for name, _ in find_runner(llm).theta.model.named_parameters()]
        assert names and not [name for name in names if "vis" in name]
        # A theta that drafts reads along with the request that opted out: its placeholders, as text.
        cases = [*images.cases(teacher), *mixed_batch(seed=41, long=70)[:6]]
        report = audited(llm, reference, cases, images, max_tokens=8)
        assert set(report.by_draft_position) == (set(range(4)) if drafts else {0})
        images.check_greedy(llm, reference, images.cases(teacher))
        # A trainer gives all of its model, what reads images too.
        trained = _save_theta(tmp_path / "trained", theta, seed=3)
        update_theta(llm, model_class(trained).from_pretrained(trained))
        audited(llm, Reference(models[0], trained), cases[:3], images, max_tokens=4)
    finally:
        stop_engine(llm)


def _save_theta(path: Path, family: str, *, seed: int) -> str:
    """A multimodal one; or one of text that has the tokenizer of Qwen2.5-VL."""
    if family != "qwen2":
        return save_multimodal_model(path, family, seed=seed)
    model = save_model(path, architecture=family, hidden_size=64, num_layers=2, seed=seed)
    save_image_tokenizer(path, "qwen2_5_vl")
    return model


@pytest.mark.full
@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_theta_drafts_with_the_teachers_weights(family: str, tmp_path: Path) -> None:
    model = save_multimodal_model(tmp_path / "model", family)
    llm = LLM(**engine_options(model, model, max_num_batched_tokens=64, limit_mm_per_prompt={"video": 0}))
    try:
        assert find_runner(llm).theta.shares_weights
        images = Images(model)
        cases = [*images.cases(family), *mixed_batch(seed=41, long=70)[:6]]
        report = audited(llm, Reference(model, model), cases, images, max_tokens=8)
        assert set(report.by_draft_position) == {0, 1, 2, 3}
    finally:
        stop_engine(llm)


@pytest.mark.full
@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
def test_an_adapter_as_theta(family: str, tmp_path: Path) -> None:
    model = save_multimodal_model(tmp_path / "model", family)
    adapter = save_adapter(tmp_path / "adapter", model, seed=4)
    merged = save_merged(tmp_path / "merged", model, adapter)
    images, reference = Images(model), Reference(model, merged)
    llm = LLM(**scoring_options(model, theta_lora=adapter, max_num_batched_tokens=64, limit_mm_per_prompt={"video": 0}))
    try:
        audited(llm, reference, [*images.cases(family), *mixed_batch(seed=41, long=70)[:6]], images, max_tokens=8)
        assert find_runner(llm).theta.steps.fused > 0
    finally:
        stop_engine(llm)


@pytest.mark.full
def test_a_video(tmp_path: Path) -> None:
    model = save_multimodal_model(tmp_path / "model", "qwen2_5_vl")
    video, ids, rng = random_video(1), IDS["qwen2_5_vl"], random.Random(4)
    stands_for_it = [ids["vision_start_token"], ids["video_token"], ids["vision_end_token"]]
    prompt = [*token_ids(rng, 50), *range(450, 454), *stands_for_it, 454, 455, *token_ids(rng, 30)]
    seen = (video, VIDEO_METADATA)
    with_video = [
        *(Case(prompt, token_ids(rng, 20), alpha, video=seen) for alpha in (KL_SYMMETRY, TEACHER_ALONE, THETA_ALONE)),
        Case(prompt, None, OPTED_OUT, video=seen),
    ]
    cases = [*with_video, *mixed_batch(seed=41, long=70)[:4]]
    llm = LLM(**scoring_options(model, drafts=2, max_num_batched_tokens=64, limit_mm_per_prompt={"image": 0}))
    try:
        with RowAudit(llm) as audit:
            outputs = generate(llm, cases, max_tokens=8, **TEXT)
        assert find_runner(llm).theta.steps.fused > 0
    finally:
        stop_engine(llm)
    audit.rows = [row for row in audit.rows if ids["video_token"] not in row.tokens[row.prompt_len :]]
    inputs = video_inputs(model, video)
    videos = {f"{output.request_id}-": inputs for output in outputs[: len(with_video)]}
    report = audit.check(Reference(model, model), theta_prompts(cases, outputs), images=videos)
    assert set(report.by_draft_position) == {0, 1, 2}


class Model:
    """Of M-RoPE, and of which vLLM says where its text is."""

    supports_mrope = True
    supports_realtime = False

    def __init__(self, first: int = 0, delta: int = 0):
        self.first, self.delta = first, delta

    def get_mrope_input_positions(self, tokens: list[int], images: list[Any]) -> tuple[torch.Tensor, int]:
        return torch.arange(self.first, self.first + len(tokens)).expand(3, -1), self.delta


def test_what_theta_cannot_read_as_text_is_refused() -> None:
    config: Any = SimpleNamespace(supports_multimodal_inputs=True, uses_mrope=True, mrope_num_dims=3)
    inputs = TextInputs(config, 8, torch.device("cpu"))
    inputs.check(Model())
    for model in (Model(first=1), Model(delta=2), object()):
        with pytest.raises(
            UnsupportedEngineError, match=r"vLLM does not say of .* that text is at the positions 0, 1, 2"
        ):
            inputs.check(model)
    hearing = Model()
    hearing.supports_realtime = True
    with pytest.raises(UnsupportedEngineError, match="Model reads audio while it generates, which theta does not"):
        inputs.check(hearing)
