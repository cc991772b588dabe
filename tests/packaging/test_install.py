"""A wheel and an editable install of a copy of the tree carry the entry points and the kernels."""

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vllm_optimal_sampling.config.versions import RANGE

ROOT = Path(__file__).parent.parent.parent
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")

ENTRY_POINTS = {
    "vllm.logits_processors": {
        "optimal_sampling": "vllm_optimal_sampling.worker.processor:OptimalSamplingLogitsProcessor"
    },
    "vllm.general_plugins": {"optimal_sampling": "vllm_optimal_sampling.plugin:register"},
    "triton.backends": {"cpu": "vllm_optimal_sampling.interpreter"},
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has, without what an earlier install or test left in the checkout."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("vllm_optimal_sampling", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=IGNORED)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy / name)
    return copy


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def entry_points(metadata: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(delimiters="=")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(metadata)
    return {section: dict(parser[section]) for section in parser.sections()}


def modules(folder: Path, prefix: str) -> set[str]:
    return {f"{prefix}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", out, tree, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_has_every_module_and_entry_point(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        found = entry_points(archive.read(f"{info}/entry_points.txt").decode())
    assert {group: found[group] for group in ENTRY_POINTS} == ENTRY_POINTS

    expected = modules(tree / "vllm_optimal_sampling", "vllm_optimal_sampling")
    kernels = modules(tree / "kernels", "vllm_optimal_sampling/kernels")
    assert "vllm_optimal_sampling/interpreter/driver.py" in expected
    assert "vllm_optimal_sampling/kernels/__init__.py" in kernels
    assert {name for name in names if name.endswith(".py")} == expected | kernels
    assert "vllm_optimal_sampling/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)

    assert metadata["Name"] == "vllm-optimal-sampling"
    assert metadata["Requires-Python"] == ">=3.11"
    links = re.findall(r"]\(([^)]*)\)", metadata.get_payload())
    assert links and all(link.startswith("https://") for link in links), (
        "a registry has no files beside the description"
    )
    required = {line for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert {"torch<3,>=2.11", "transformers<6,>=5", "triton<4,>=3.5"} < required
    assert {SpecifierSet(RANGE)} == {Requirement(line).specifier for line in required if line.startswith("vllm")}


def test_wheel_installs_the_kernels_inside_the_package(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    offline = ["--no-deps", "--no-index", "--no-compile"]
    run(sys.executable, "-m", "pip", "install", *offline, "--target", site, wheel, cwd=tmp_path)
    # Without site-packages, where the checkout itself may be installed.
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
from importlib.metadata import entry_points, version
from importlib.util import find_spec
print(find_spec("vllm_optimal_sampling.kernels").origin, version("vllm-optimal-sampling"))
print(*[point.value for point in entry_points(group="triton.backends")])
"""
    lines = run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path).splitlines()
    assert lines[0].split() == [str(site / "vllm_optimal_sampling/kernels/__init__.py"), "0.1.0"]
    assert lines[1] == "vllm_optimal_sampling.interpreter"


def test_editable_install_finds_the_kernels_in_the_tree(tree: Path, tmp_path: Path) -> None:
    build = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    run(sys.executable, "-c", build, cwd=tree)
    (built,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(site)
    code = f"""
import site
site.addsitedir({str(site)!r})
from importlib.metadata import entry_points
from importlib.util import find_spec
for name in ("vllm_optimal_sampling", "vllm_optimal_sampling.interpreter.driver", "vllm_optimal_sampling.kernels"):
    print(find_spec(name).origin)
print(*[point.name for group in {sorted(ENTRY_POINTS)!r} for point in entry_points(group=group)])
"""
    lines = run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path).splitlines()
    inside = ["vllm_optimal_sampling/__init__.py", "vllm_optimal_sampling/interpreter/driver.py", "kernels/__init__.py"]
    assert lines[:3] == [str(tree / name) for name in inside]
    assert lines[3].split() == ["cpu", "optimal_sampling", "optimal_sampling"]
