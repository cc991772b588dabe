"""CITATION.cff has what its format requires, and the package's version."""

from pathlib import Path

import yaml

import vllm_optimal_sampling

ROOT = Path(__file__).resolve().parents[2]


def test_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == vllm_optimal_sampling.__version__
    assert citation["license"] in (ROOT / "setup.py").read_text()
