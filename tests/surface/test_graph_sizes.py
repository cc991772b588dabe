"""Sizes of CUDA graphs: every decoding batch finds one, with little padding, and no more are captured than that takes.

No GPU is needed: which graph serves a batch is worked out by vLLM's own manager, from the configuration.
"""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu import cudagraph_utils

from vllm_optimal_sampling.config.graph_sizes import (
    MOST_MIXED_TOKENS,
    MOST_VERIFIED_TOKENS,
    choose_graph_sizes,
    graph_sizes,
    has_own_sizes,
    prompt_sizes,
    request_counts,
)
from vllm_optimal_sampling.worker.theta.piece_graphs import PieceGraphs

BuildConfig = Callable[..., Any]


def with_graphs(config: Any, sizes: list[int] | None = None) -> Any:
    """A configuration as vLLM makes it where there is a GPU; on a CPU it has no sizes."""
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    config.compilation_config.cudagraph_capture_sizes = sizes or [1, 2, 4, 8]
    config.compilation_config.max_cudagraph_capture_size = config.compilation_config.cudagraph_capture_sizes[-1]
    return config


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """vLLM's manager of graphs, as if they were captured, for steps of `width` tokens a request."""
    rank = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    monkeypatch.setattr(cudagraph_utils, "get_pp_group", lambda: rank)
    platform = SimpleNamespace(get_global_graph_pool=lambda: None)
    monkeypatch.setattr(cudagraph_utils, "current_platform", platform)

    def make(config: Any, width: int) -> Any:
        made = cudagraph_utils.CudaGraphManager(
            config, torch.device("cpu"), CUDAGraphMode.FULL_AND_PIECEWISE, decode_query_len=width
        )
        made._graphs_captured = True
        return made

    return make


def graph_for(manager: Any, requests: int, width: int) -> Any:
    return manager.dispatch(requests, requests * width, uniform_token_count=width, num_active_loras=0)


@pytest.mark.parametrize(("drafts", "max_num_seqs"), [(4, 256), (3, 8), (1, 100), (7, 64), (2, 1)])
def test_every_decoding_batch_has_a_graph(
    build_config: BuildConfig, manager: Callable[..., Any], drafts: int, max_num_seqs: int
) -> None:
    config = build_config(max_num_seqs=max_num_seqs, max_num_batched_tokens=8192)
    config.speculative_config.num_speculative_tokens = drafts
    choose_graph_sizes(with_graphs(config))
    sizes = config.compilation_config.cudagraph_capture_sizes
    assert sizes == sorted(set(sizes)) and sizes[-1] == config.compilation_config.max_cudagraph_capture_size
    for width in (drafts + 1, 1):  # verification, and theta's round
        graphs = manager(config, width)
        for requests in range(1, max_num_seqs + 1):
            graph = graph_for(graphs, requests, width)
            assert graph.cg_mode == CUDAGraphMode.FULL, (width, requests)
            padding = graph.num_tokens - requests * width
            assert padding < width * 16 + 8, (width, requests, graph)
            assert requests > 8 or padding <= width * 4, (width, requests, graph)


def test_vllms_own_sizes_leave_large_batches_without(build_config: BuildConfig, manager: Callable[..., Any]) -> None:
    """What the sizes are for; where this no longer holds, vLLM's own may do."""
    config = build_config(max_num_seqs=256, max_num_batched_tokens=8192)
    config.speculative_config.num_speculative_tokens = 4
    with_graphs(config, [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)])
    assert graph_for(manager(config, 5), 128, 5).cg_mode == CUDAGraphMode.NONE
    choose_graph_sizes(config)
    assert graph_for(manager(config, 5), 128, 5).cg_mode == CUDAGraphMode.FULL
    assert len(config.compilation_config.cudagraph_capture_sizes) < 50


@pytest.mark.parametrize(
    "schedule",
    [
        [(1, 8, 4), (9, 32, 2), (33, 128, 0)],
        [(1, 45, 8), (46, 90, 4), (91, 128, 2)],
        [(1, 4, 6), (5, 16, 4), (17, 64, 3), (65, 128, 1)],
    ],
)
def test_every_number_of_drafts_of_a_schedule_has_graphs(
    build_config: BuildConfig, manager: Callable[..., Any], theta: str, schedule: list[tuple[int, int, int]]
) -> None:
    most = schedule[0][2]
    config = build_config(
        max_num_seqs=128,
        max_num_batched_tokens=8192,
        speculative_config={
            "model": theta,
            "num_speculative_tokens": most,
            "num_speculative_tokens_per_batch_size": schedule,
        },
    )
    choose_graph_sizes(with_graphs(config))
    assert len(config.compilation_config.cudagraph_capture_sizes) < 50
    graphs = manager(config, most + 1)
    for first, last, drafts in schedule:
        for requests in range(first, last + 1):
            assert graph_for(graphs, requests, drafts + 1).cg_mode == CUDAGraphMode.FULL, (requests, drafts)
    rounds = manager(config, 1)
    for requests in range(1, 129):
        assert graph_for(rounds, requests, 1).cg_mode == CUDAGraphMode.FULL, requests


def test_mixed_steps_keep_graphs(build_config: BuildConfig, manager: Callable[..., Any]) -> None:
    """A prompt that joins a decoding batch makes a step of any number of tokens."""
    config = build_config(max_num_seqs=64, max_num_batched_tokens=8192)
    choose_graph_sizes(with_graphs(config))
    graphs = manager(config, config.speculative_config.num_speculative_tokens + 1)
    for tokens in range(1, MOST_MIXED_TOKENS + 1):
        graph = graphs.dispatch(2, tokens, uniform_token_count=None, num_active_loras=0)
        assert graph.cg_mode == CUDAGraphMode.PIECEWISE, tokens
        assert graph.num_tokens - tokens < 64


@pytest.mark.parametrize("max_num_seqs", [8, 64, 256])
def test_prompt_passes_of_theta_are_padded_to_few_sizes(
    build_config: BuildConfig, manager: Callable[..., Any], max_num_seqs: int
) -> None:
    config = build_config(max_num_seqs=max_num_seqs, max_num_batched_tokens=8192)
    choose_graph_sizes(with_graphs(config))
    sizes = list(config.compilation_config.cudagraph_capture_sizes)
    pieces = PieceGraphs.of_theta(config, torch.device("cpu"), None)  # type: ignore[arg-type]
    assert pieces.dispatch(1, 8, 0) is None  # not captured yet
    graphs = pieces._find_manager()
    graphs._graphs_captured = True
    captured = {desc.num_tokens for descs in graphs._capture_descs.values() for desc in descs}
    assert captured <= set(sizes) and len(captured) <= 12 and max(captured) == sizes[-1]
    assert config.compilation_config.cudagraph_capture_sizes == sizes  # the teacher's stay
    for tokens in range(1, sizes[-1] + 1):
        graph = pieces.dispatch(3, tokens, 0)
        assert graph is not None and graph.num_reqs is None
        assert 0 <= graph.num_tokens - tokens < max(128, tokens // 2), tokens
    assert pieces.dispatch(3, sizes[-1] + 1, 0) is None


def test_sizes_of_prompt_passes_where_there_are_few() -> None:
    assert prompt_sizes([]) == []
    assert prompt_sizes([1, 2, 4, 8]) == [8]
    assert prompt_sizes([6, 64, 70, 512]) == [6, 70, 512]


@pytest.mark.parametrize(
    "arguments",
    [
        {"cudagraph_capture_sizes": [4, 16]},
        {"max_cudagraph_capture_size": 64},
        {"compilation_config": {"cudagraph_capture_sizes": [4, 16]}},
        {"compilation_config": {"max_cudagraph_capture_size": 64}},
        {"performance_mode": "interactivity"},
    ],
)
def test_sizes_of_the_users_stay(engine_args: Callable[..., Any], arguments: dict[str, Any]) -> None:
    assert has_own_sizes(engine_args(**arguments))
    assert not has_own_sizes(engine_args())
    assert not has_own_sizes(engine_args(compilation_config={"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}))


def test_an_engine_without_graphs_gets_none(build_config: BuildConfig) -> None:
    config = build_config()
    assert config.compilation_config.cudagraph_mode == CUDAGraphMode.NONE
    before = list(config.compilation_config.cudagraph_capture_sizes)
    choose_graph_sizes(config)
    assert config.compilation_config.cudagraph_capture_sizes == before


def test_no_size_is_beyond_a_step_or_what_gains_from_graphs() -> None:
    assert graph_sizes({4: range(1, 65)}, 64, max_tokens=100)[-1] <= 100
    assert graph_sizes({4: range(1, 1025)}, 1024, max_tokens=16384)[-1] <= MOST_VERIFIED_TOKENS
    assert graph_sizes({7: range(1, 9)}, 8, max_tokens=4) == [1, 2, 4]
    assert request_counts(100)[-3:] == [80, 96, 100]


@pytest.mark.parametrize(("drafts", "max_num_seqs"), [(0, 256), (0, 5), (3, 64), (2, 1)])
def test_every_step_of_both_models_rows_has_a_graph(
    build_config: BuildConfig, manager: Callable[..., Any], drafts: int, max_num_seqs: int
) -> None:
    """Where theta is the teacher itself: all requests of a step, and behind them those that did not opt out."""
    ngram = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_max": 3} if drafts else None
    config = with_graphs(
        build_config(
            speculative_config=ngram,
            additional_config={"optimal_sampling": {"theta": "self"}},
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=4096,
        )
    )
    choose_graph_sizes(config)
    scoring = copy.copy(config)  # as `ScoringPass` sizes its own
    scoring.scheduler_config = copy.copy(config.scheduler_config)
    scoring.scheduler_config.max_num_seqs = 2 * max_num_seqs
    graphs, teachers = manager(scoring, drafts + 1), manager(config, drafts + 1)
    for rows in range(2, 2 * max_num_seqs + 1):
        found = graph_for(graphs, rows, drafts + 1)
        assert found.cg_mode == CUDAGraphMode.FULL
        assert found.num_tokens == found.num_reqs * (drafts + 1) and found.num_reqs - rows < 32
    for requests in range(1, max_num_seqs + 1):  # a step in which nobody asked
        assert graph_for(teachers, requests, drafts + 1).cg_mode == CUDAGraphMode.FULL
