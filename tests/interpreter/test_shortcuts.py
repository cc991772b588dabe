"""The shortcuts change no bit of what vLLM's kernels and the mix compute."""

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_optimal_sampling.interpreter import is_interpreting

pytestmark = pytest.mark.skipif(not is_interpreting(), reason="needs TRITON_INTERPRET=1 before Triton is imported")

LAUNCHES = Path(__file__).parent / "launches.py"


def digests(way: str) -> list[str]:
    done = subprocess.run([sys.executable, str(LAUNCHES), way], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return lines[lines.index(next(line for line in lines if line.startswith("shortcuts "))) :]


def test_every_output_is_the_same_bit_for_bit() -> None:
    plain, shortcuts = digests("plain"), digests("shortcuts")
    assert plain[0] == "shortcuts False"
    assert shortcuts[0] == "shortcuts True"
    assert len(plain) == 21
    assert plain[1:] == shortcuts[1:]
    assert len(set(plain[1:])) == 20  # the launches do differ from one another
