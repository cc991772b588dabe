"""The example pair's modules are scripts in their own folder: put it on the path, as running them does."""

import sys
from pathlib import Path

import pytest

PAIR = Path(__file__).resolve().parents[2] / "examples" / "pair"
sys.path.insert(0, str(PAIR))


@pytest.fixture(scope="session")
def pair() -> Path:
    """The folder with the shipped weights, problems and figures."""
    return PAIR
