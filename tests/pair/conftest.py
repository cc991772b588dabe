"""The example pair, as the tests of this folder name it."""

from pathlib import Path

import pytest

from support.example_pair import PAIR


@pytest.fixture(scope="session")
def pair() -> Path:
    """The folder with the shipped weights, problems and figures."""
    return PAIR
