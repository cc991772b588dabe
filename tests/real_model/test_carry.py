"""The parts that travel, one call after the other."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from real_model.carry import pack, unpack


@pytest.fixture
def packed(tmp_path: Path) -> list[Path]:
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(random.Random(0).randbytes(50_000))  # as hard to compress as weights
    (tmp_path / "problems").mkdir()
    (tmp_path / "problems" / "gate.jsonl").write_text('{"task": "chain_sum"}\n')
    return pack(tmp_path / "here", {"weights.gguf": weights, "problems": tmp_path / "problems"}, 20_000)


def test_parts_that_come_one_by_one_make_the_whole(tmp_path: Path, packed: list[Path]) -> None:
    assert len(packed) == 3 and all(part.stat().st_size <= 20_000 for part in packed)
    target = tmp_path / "there"
    for number, part in enumerate(packed):
        call = tmp_path / f"call-{number}"
        call.mkdir()
        shutil.copy(part, call)
        shutil.copy(packed[0].parent / "parts.json", call)
        assert unpack(call, target) == [one.name for one in packed[number + 1 :]]
        assert (target / "weights.gguf").exists() == (part == packed[-1])
    assert (target / "weights.gguf").read_bytes() == (tmp_path / "weights.gguf").read_bytes()
    assert json.loads((target / "problems" / "gate.jsonl").read_text()) == {"task": "chain_sum"}


def test_a_part_that_broke_on_its_way_is_refused(tmp_path: Path, packed: list[Path]) -> None:
    packed[1].write_bytes(packed[1].read_bytes()[:-1])
    with pytest.raises(ValueError, match="part-01 is not what"):
        unpack(packed[0].parent, tmp_path / "there")
