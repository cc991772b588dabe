"""Graphs of theta's passes without an engine: of pieces (which of the teacher's outputs are copied, what a replay reads, where
there are none), and what graphs of decode steps are captured with.

With engines, and every row of theirs audited: `test_prompt_passes_in_pieces`, `test_one_model_in_pieces` and
`test_two_models_in_pieces`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from vllm.config.compilation import CompilationConfig, CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.input_batch import InputBuffers

from vllm_optimal_sampling.config.settings import KEY
from vllm_optimal_sampling.worker.theta import piece_graphs, scoring_pass
from vllm_optimal_sampling.worker.theta.piece_graphs import PieceGraphs, outputs_out_of_graphs
from vllm_optimal_sampling.worker.theta.scoring_pass import ScoringPass


class State(NamedTuple):
    hidden_states: torch.Tensor | None
    aux_hidden_states: list[torch.Tensor] | None = None


def graphs(mode: str = "FULL_AND_PIECEWISE", whole: torch.Tensor | None = None, largest: int | None = 64) -> Any:
    return SimpleNamespace(
        cudagraph_mode=CUDAGraphMode[mode],
        hidden_states=whole,
        compilation_config=SimpleNamespace(max_cudagraph_capture_size=largest),
    )


def test_outputs_of_pieces_are_copied() -> None:
    state = State(torch.ones(64, 8), [torch.ones(64, 8), torch.ones(64, 8)])
    for mode in ("PIECEWISE", "FULL_AND_PIECEWISE"):
        kept = outputs_out_of_graphs(state, graphs(mode, whole=torch.zeros(64, 8)))
        for mine, theirs in zip(
            (kept.hidden_states, *kept.aux_hidden_states),
            (state.hidden_states, *state.aux_hidden_states),
            strict=True,
        ):
            assert mine.data_ptr() != theirs.data_ptr() and torch.equal(mine, theirs)
    assert outputs_out_of_graphs(State(torch.ones(64, 8)), graphs()).aux_hidden_states is None


@pytest.mark.parametrize(
    "found",
    [
        None,  # while memory is profiled
        graphs("NONE", largest=None),
        graphs("FULL"),
        graphs("FULL_DECODE_ONLY"),
        graphs(largest=63),  # no graph held so many tokens
    ],
)
def test_other_outputs_are_not(found: Any) -> None:
    state = State(torch.ones(64, 8))
    assert outputs_out_of_graphs(state, found) is state
    assert outputs_out_of_graphs(State(None), graphs()).hidden_states is None


def test_output_of_a_graph_of_the_whole_forward_is_not_copied() -> None:
    whole = torch.ones(512, 8)
    state = State(whole[:64])
    assert outputs_out_of_graphs(state, graphs(whole=whole)) is state


def filled(value: int) -> InputBuffers:
    buffers = InputBuffers(4, 16, torch.device("cpu"))
    buffers.input_ids.fill_(value)
    buffers.positions.fill_(10 * value)
    return buffers


def tensors(buffers: InputBuffers) -> list[torch.Tensor]:
    return [buffers.input_ids, buffers.positions, buffers.is_padding]


def test_a_replay_of_the_teachers_graphs_reads_thetas_tokens() -> None:
    """And only a replay: what the sampler reads is the teacher's before and after, also after an error."""
    runner = SimpleNamespace(input_buffers=filled(1), cudagraph_manager=None)
    mine = filled(2)
    pieces = PieceGraphs.of_teacher(runner)
    before = [tensor.clone() for tensor in tensors(runner.input_buffers)]

    def replay() -> None:
        with pieces.holding(mine, 5, 8):
            assert pieces.inputs.input_ids.tolist() == [2] * 8 + [1] * 8
            assert pieces.inputs.positions.tolist() == [20] * 8 + [10] * 8
            assert pieces.inputs.is_padding.tolist() == [False] * 5 + [True] * 3 + [False] * 8
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        replay()
    for now, then in zip(tensors(runner.input_buffers), before, strict=True):
        assert torch.equal(now, then)


def test_shapes_without_graphs_of_pieces() -> None:
    """Whatever else vLLM's manager answers: nothing that was captured, or a graph of the whole forward."""
    for mode, found in (("NONE", False), ("FULL", False), ("PIECEWISE", True)):
        desc = BatchExecutionDescriptor(CUDAGraphMode[mode], 8, None)
        runner = SimpleNamespace(
            input_buffers=None, cudagraph_manager=SimpleNamespace(dispatch=lambda *_, desc=desc: desc)
        )
        assert (PieceGraphs.of_teacher(runner).dispatch(2, 5, 0) is desc) is found


@pytest.mark.parametrize(
    ("given", "has"),
    [
        ({}, "theta's"),
        ({"is_teacher": True}, "the teacher's"),
        ({"is_asked": False}, None),
        ({"is_asked": False, "is_teacher": True}, None),
        ({"mode": "FULL_DECODE_ONLY"}, None),
        ({"mode": "NONE"}, None),
        ({"is_compiled": False}, None),
        ({"is_breakable": True}, None),  # not made of compiled code
        ({"takes_embeddings": True}, None),
        ({"dimensions": 3}, "theta's"),  # positions in a buffer of theta's
        ({"dimensions": 3, "is_teacher": True}, None),
        ({"splitting_ops": ["vllm::unified_attention_with_output"]}, "theta's"),
        ({"splitting_ops": ["vllm::unified_attention_with_output"], "is_teacher": True}, None),
    ],
)
def test_where_there_are_graphs_of_pieces(
    given: dict[str, Any], has: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piece_graphs, "has_compiled_submodule", lambda model: given.get("is_compiled", True))
    monkeypatch.setattr(piece_graphs, "is_breakable_cudagraph_enabled", lambda: given.get("is_breakable", False))
    monkeypatch.setattr(scoring_pass.PieceGraphs, "of_theta", lambda *_: "theta's")
    monkeypatch.setattr(scoring_pass.PieceGraphs, "of_teacher", lambda runner: "the teacher's")
    compilation = CompilationConfig(splitting_ops=given.get("splitting_ops"))
    theta: Any = SimpleNamespace(
        inputs=SimpleNamespace(
            takes_embeddings=given.get("takes_embeddings", False),
            rope_positions=torch.zeros(given["dimensions"], 9) if "dimensions" in given else None,
        ),
        vllm_config=SimpleNamespace(
            compilation_config=compilation,
            additional_config={KEY: {"theta_prompt_graphs": True} if given.get("is_asked", True) else {}},
        ),
        device=None,
        buffers=None,
        pieces="of a profile",
    )
    mode = CUDAGraphMode[given.get("mode", "FULL_AND_PIECEWISE")]
    runner = object() if given.get("is_teacher") else None
    ScoringPass.init_pieces(theta, torch.nn.Identity(), mode, runner)
    assert theta.pieces == has


def test_graphs_of_fewer_drafts_are_captured_as_they_are_replayed() -> None:
    """With a schedule a step has as many tokens a request as its graph says, and not as many as the most drafts make."""
    descs = [
        BatchExecutionDescriptor(CUDAGraphMode.FULL, 12, 3, uniform_token_count=4),
        BatchExecutionDescriptor(CUDAGraphMode.FULL, 6, 6, uniform_token_count=1),
    ]
    captured = []

    def inputs(num_reqs: int, num_tokens: int, query_len: int | None) -> tuple[dict[str, Any], None]:
        captured.append((num_reqs, num_tokens, query_len))
        return {}, None

    theta: Any = SimpleNamespace(
        pieces=None,
        graphs=SimpleNamespace(
            needs_capture=lambda: True,
            capture=lambda create, _: [create(desc, warmup=False) for desc in descs],
        ),
        max_num_reqs=6,
        decode_query_len=4,
        _inputs_to_capture=inputs,
    )
    ScoringPass.capture(theta, torch.nn.Identity(), None)
    assert captured == [(3, 12, 4), (6, 6, 1)]
