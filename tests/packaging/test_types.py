"""A type checker sees what the kernels take, though they stand beside the package in the tree."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_mypy_refuses_wrong_arguments_of_the_kernels(tmp_path: Path) -> None:
    snippet = tmp_path / "snippet.py"
    snippet.write_text("from vllm_optimal_sampling.kernels import MixRecord, mix_\nmix_(record=MixRecord)\n")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(snippet)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert 'Argument "record" to "mix_" has incompatible type "type[MixRecord]"; expected "MixRecord"' in result.stdout
