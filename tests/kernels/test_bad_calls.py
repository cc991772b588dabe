"""A bad call ends in one clear error before anything is launched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from vllm_optimal_sampling.kernels import MixRecord, MixScratch, MixSettings, mix_, token_logprobs

ROWS, SLOTS, POSITIONS, VOCAB = 4, 3, 2, 16


def arguments() -> dict[str, Any]:
    return {
        "teacher_logits": torch.zeros(ROWS, VOCAB),
        "theta_logits": torch.zeros(SLOTS, POSITIONS, VOCAB, dtype=torch.bfloat16),
        "slots": torch.zeros(ROWS, dtype=torch.int32),
        "draft_positions": torch.zeros(ROWS, dtype=torch.int32),
        "token_positions": torch.zeros(ROWS, dtype=torch.int64),
        "settings": MixSettings.allocate(SLOTS, "cpu"),
        "record": MixRecord.allocate(SLOTS, POSITIONS, "cpu"),
        "scratch": MixScratch.allocate(ROWS, VOCAB, "cpu"),
    }


BAD: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("teacher_logits", lambda: torch.zeros(ROWS, VOCAB).half(), TypeError, "teacher_logits is float16.*float32"),
    ("teacher_logits", lambda: torch.zeros(ROWS * VOCAB), ValueError, r"shape \[64\]; it has to be \[any, any\]"),
    ("teacher_logits", lambda: torch.zeros(VOCAB, ROWS).T, ValueError, "stride 4 in its last dimension"),
    ("teacher_logits", lambda: torch.zeros(ROWS, VOCAB, device="meta"), ValueError, "on cpu, but has to be on meta"),
    ("teacher_logits", lambda: torch.zeros(ROWS, 2 * VOCAB), ValueError, "more than this scratch"),
    ("theta_logits", lambda: torch.zeros(SLOTS, POSITIONS, VOCAB).double(), TypeError, "theta_logits is float64"),
    ("theta_logits", lambda: torch.zeros(SLOTS, VOCAB), ValueError, r"\[any, any, any\]"),
    ("theta_logits", lambda: torch.zeros(SLOTS, VOCAB, POSITIONS).mT, ValueError, "last dimension"),
    (
        "theta_logits",
        lambda: torch.zeros(SLOTS, POSITIONS, VOCAB, device="meta"),
        ValueError,
        "theta_logits is on meta",
    ),
    ("slots", lambda: torch.zeros(ROWS), TypeError, "slots is float32; it has to be int32"),
    ("slots", lambda: torch.zeros(ROWS - 1, dtype=torch.int32), ValueError, r"slots has shape \[3\]; .* \[4\]"),
    ("slots", lambda: torch.zeros(2 * ROWS, dtype=torch.int32)[::2], ValueError, "contiguous"),
    ("draft_positions", lambda: torch.zeros(ROWS, dtype=torch.int64), TypeError, "draft_positions is int64"),
    ("token_positions", lambda: torch.zeros(ROWS, dtype=torch.int32), TypeError, "token_positions is int32"),
    ("settings", lambda: MixSettings.allocate(SLOTS + 1, "cpu"), ValueError, r"settings.alpha has shape \[4\]"),
    ("record", lambda: MixRecord.allocate(SLOTS, POSITIONS + 1, "cpu"), ValueError, r"record.alpha has shape \[3, 3\]"),
    ("scratch", lambda: MixScratch.allocate(ROWS - 1, VOCAB, "cpu"), ValueError, "allocate a larger one"),
    ("scratch", lambda: MixScratch.allocate(ROWS, VOCAB, "meta"), ValueError, "scratch is on meta"),
]


@pytest.mark.parametrize(
    ("name", "make", "error", "message"), BAD, ids=[f"{i}-{case[0]}" for i, case in enumerate(BAD)]
)
def test_mix_refuses(name: str, make: Callable[[], Any], error: type[Exception], message: str) -> None:
    call = arguments() | {name: make()}
    rows = call["teacher_logits"].clone()
    with pytest.raises(error, match=message):
        mix_(**call)
    if rows.device.type != "meta":
        assert torch.equal(rows, call["teacher_logits"])


def test_mix_takes_no_rows() -> None:
    call = arguments()
    for name in ("teacher_logits", "slots", "draft_positions", "token_positions"):
        call[name] = call[name][:0]
    mix_(**call)


def test_token_logprobs_refuses() -> None:
    call = arguments()
    names = ("teacher_logits", "theta_logits", "slots", "draft_positions", "record")
    with pytest.raises(TypeError, match="token_ids is float32; it has to be int32 or int64"):
        token_logprobs(torch.zeros(ROWS), *(call[name] for name in names))
    with pytest.raises(ValueError, match=r"token_ids has shape \[1\]"):
        token_logprobs(torch.zeros(1, dtype=torch.int64), *(call[name] for name in names))


def test_settings_and_record_refuse_wrong_tensors() -> None:
    settings = MixSettings.allocate(SLOTS, "cpu")
    with pytest.raises(TypeError, match=r"MixSettings\.method is int64; it has to be int32"):
        MixSettings(**vars(settings) | {"method": settings.first_position})
    with pytest.raises(ValueError, match=r"MixSettings.alpha has shape \[2\]"):
        MixSettings(**vars(settings) | {"alpha": settings.alpha[:2]})
    record = MixRecord.allocate(SLOTS, POSITIONS, "cpu")
    with pytest.raises(TypeError, match=r"MixRecord\.fallback is float32; it has to be bool"):
        MixRecord(**vars(record) | {"fallback": record.alpha})


def test_scratch_refuses_nothing_to_do() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        MixScratch.allocate(0, VOCAB, "cpu")
