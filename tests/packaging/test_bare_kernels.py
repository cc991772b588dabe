"""From the repository's root, `kernels` is Hugging Face's package or none, and never ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.17.3"

OURS = "assert not {name for name in sys.modules if name.startswith('kernels.')} & {'kernels.mix', 'kernels.settings'}"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder as pip leaves it after installing a package `kernels`."""
    package, metadata = tmp_path / "kernels", tmp_path / f"kernels-{VERSION}.dist-info"
    (package / "layer").mkdir(parents=True)
    (package / "__init__.py").write_text("from .layer import Mode\n\ndef get_kernel(name): return name\n")
    (package / "layer/__init__.py").write_text("class Mode: ...\n")
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {VERSION}\n")
    return tmp_path


def run(code: str, *paths: Path) -> list[str]:
    """What the code prints when it is run as `python -c` in the root, which puts the root first on the path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", f"import sys\n{code}\n{OURS}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_installed_package_is_imported(site: Path) -> None:
    code = (
        "import kernels, kernels.layer; from kernels import get_kernel; print(kernels.__file__, kernels.layer.__file__)"
    )
    assert run(code, site) == [str(site / "kernels/__init__.py"), str(site / "kernels/layer/__init__.py")]


@pytest.mark.parametrize(
    "paths", [(), (ROOT / "tests",)], ids=["alone", "with another folder of that name, tests/kernels"]
)
def test_where_it_is_not_installed_nothing_is_in_it(paths: tuple[Path, ...]) -> None:
    code = """
import kernels
assert getattr(kernels, "__file__", None) is None and not hasattr(kernels, "__version__")
for statement in ("from kernels import get_kernel", "from kernels import mix_", "import kernels.mix"):
    try:
        exec(statement)
    except ImportError:
        print("absent")
"""
    assert run(code, *paths) == ["absent"] * 3


def test_transformers_sees_what_is_installed(site: Path) -> None:
    code = """
from transformers.utils.import_utils import _is_package_available, is_kernels_available
print(*_is_package_available("kernels", return_version=True), is_kernels_available())
"""
    assert run(code) == ["False", "N/A", "False"]
    assert run(code, site) == ["True", VERSION, "True"]


def test_ours_is_imported_once_beside_it(site: Path) -> None:
    code = """
import kernels
import vllm_optimal_sampling.kernels as ours
from vllm_optimal_sampling.kernels import mix_
print(ours.__file__, kernels is ours, mix_.__module__)
"""
    assert run(code, site) == [str(ROOT / "kernels/__init__.py"), "False", "vllm_optimal_sampling.kernels.mix"]
