"""The warm-up touches nothing, and leaves no variant of a kernel to be compiled later."""

import pytest
import torch
import triton
from vllm_optimal_sampling.kernels import MixRecord, MixScratch, MixSettings, WarmUp
from vllm_optimal_sampling.kernels import warm_up as module
from vllm_optimal_sampling.kernels.scratch import LaunchShape


def test_nothing_is_written() -> None:
    settings, record = MixSettings.allocate(3, "cpu"), MixRecord.allocate(3, 2, "cpu")
    settings.first_position.zero_()
    for tensor in vars(record).values():
        tensor.fill_(1)
    warm_up = WarmUp(64, torch.zeros(3, 2, 64), settings, record, MixScratch.allocate(8, 64, "cpu"), torch.bfloat16)
    warm_up.begin()
    warm_up.finish()
    assert all((tensor == 1).all() for tensor in vars(record).values())


@pytest.mark.parametrize("vocab", [512, 32_000, 151_936, 262_144])
def test_every_number_of_splits_is_launched(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[LaunchShape] = []
    monkeypatch.setattr(module, "launch", lambda *arguments: launched.append(arguments[-1]))
    monkeypatch.setattr(WarmUp, "_compile", lambda self: None)  # on a GPU
    choose = LaunchShape.choose
    monkeypatch.setattr(
        LaunchShape, "choose", lambda rows, vocab, *, interpreted: choose(rows, vocab, interpreted=False)
    )
    settings, record = MixSettings.allocate(1, "cpu"), MixRecord.allocate(1, 1, "cpu")
    WarmUp(vocab, torch.zeros(1, 1, vocab), settings, record, MixScratch.allocate(2000, vocab, "cpu")).finish()
    compiled = {triton.next_power_of_2(shape.splits) for shape in launched}
    needed = {triton.next_power_of_2(choose(rows, vocab, interpreted=False).splits) for rows in range(1, 2001)}
    assert compiled == needed
    assert len(launched) == len(needed)


def test_what_the_compiler_raises_is_raised_where_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: WarmUp) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(WarmUp, "_compile", fail)
    settings, record = MixSettings.allocate(1, "cpu"), MixRecord.allocate(1, 1, "cpu")
    warm_up = WarmUp(64, torch.zeros(1, 1, 64), settings, record, MixScratch.allocate(1, 64, "cpu"))
    warm_up.begin()
    with pytest.raises(RuntimeError, match="no compiler"):
        warm_up.finish()
