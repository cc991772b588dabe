"""`warm_up` touches nothing, and leaves no variant of a kernel to be compiled later."""

import importlib

import pytest
import torch
import triton
from vllm_optimal_sampling.kernels import MixRecord, MixScratch, MixSettings, warm_up
from vllm_optimal_sampling.kernels.scratch import LaunchShape


def test_nothing_is_written() -> None:
    settings, record = MixSettings.allocate(3, "cpu"), MixRecord.allocate(3, 2, "cpu")
    settings.first_position.zero_()
    for tensor in vars(record).values():
        tensor.fill_(1)
    warm_up(64, torch.zeros(3, 2, 64), settings, record, MixScratch.allocate(8, 64, "cpu"), torch.bfloat16)
    assert all((tensor == 1).all() for tensor in vars(record).values())


@pytest.mark.parametrize("vocab", [512, 32_000, 151_936, 262_144])
def test_every_number_of_splits_is_launched(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[LaunchShape] = []
    # The package exports the function under the name of its module.
    module = importlib.import_module("vllm_optimal_sampling.kernels.warm_up")
    monkeypatch.setattr(module, "launch", lambda *arguments: launched.append(arguments[-1]))
    monkeypatch.setattr(module, "_compile", lambda steps: None)  # on a GPU
    choose = LaunchShape.choose
    monkeypatch.setattr(
        LaunchShape, "choose", lambda rows, vocab, *, interpreted: choose(rows, vocab, interpreted=False)
    )
    settings, record = MixSettings.allocate(1, "cpu"), MixRecord.allocate(1, 1, "cpu")
    warm_up(vocab, torch.zeros(1, 1, vocab), settings, record, MixScratch.allocate(2000, vocab, "cpu"))
    compiled = {triton.next_power_of_2(shape.splits) for shape in launched}
    needed = {triton.next_power_of_2(choose(rows, vocab, interpreted=False).splits) for rows in range(1, 2001)}
    assert compiled == needed
    assert len(launched) == len(needed)
