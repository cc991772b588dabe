"""Which vLLM this package works with is said in one file; what reads it says the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vllm_optimal_sampling.config.versions import CPU_BUILD, NEWEST, RANGE, SUPPORTED_VLLM, is_supported_version

ROOT = Path(__file__).resolve().parents[2]
PLACE = Path("vllm_optimal_sampling/config/versions.py")
FOR_READERS = {"README.md", "CHANGELOG.md"}
"""They have to name the range; a test below holds them to it."""
MEASURED = re.compile(r"results/|predictions/|^(benchmarks|examples)/.*README\.md$|^docs/")
"""What was seen on one release is no claim about the others."""


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    suffixes = {".py", ".sh", ".toml", ".md", ".yml", ".yaml", ".cfg", ".cff", ".env", ""}
    return [
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).is_file() and Path(name).suffix in suffixes and not MEASURED.search(name)
    ]


def test_no_other_file_names_the_range() -> None:
    first, last = (rf"{major}\.{minor}" for major, minor in SUPPORTED_VLLM)
    releases = "|".join(rf"{major}\.{minor}\.\d" for major, minor in [SUPPORTED_VLLM[0], SUPPORTED_VLLM[1]])
    named = re.compile(rf"[<>=~]=?\s*({first}|{last})\b|\b({releases}|{re.escape(NEWEST)}|{re.escape(CPU_BUILD)})")
    found = {name for name in tracked() if named.search((ROOT / name).read_text())}
    assert str(PLACE) in found
    assert found - FOR_READERS == {str(PLACE)}


@pytest.mark.parametrize("name", sorted(FOR_READERS))
def test_what_readers_are_told(name: str) -> None:
    (major, first), (_, last) = SUPPORTED_VLLM
    minors = [f"{major}.{minor}" for minor in range(first, last)]
    assert f"vLLM {', '.join(minors[:-1])} and {minors[-1]}" in (ROOT / name).read_text()


@pytest.mark.parametrize(
    ("question", "answer"), [("requirement", f"vllm{RANGE}"), ("cpu_build", CPU_BUILD), ("newest", NEWEST)]
)
def test_scripts_are_told_before_anything_is_installed(question: str, answer: str) -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / PLACE), question]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{answer}\n"
    requirement = Requirement(f"vllm{RANGE}")
    assert (
        requirement.specifier == SpecifierSet(RANGE) and "{}.{}".format(*SUPPORTED_VLLM[1]) not in requirement.specifier
    )


def test_an_unknown_question_is_refused() -> None:
    done = subprocess.run([sys.executable, str(ROOT / PLACE), "oldest"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "usage: versions.py {requirement,cpu_build,newest}\n")


def test_the_tests_run_on_supported_releases() -> None:
    assert is_supported_version(CPU_BUILD) and is_supported_version(NEWEST)
    (major, _), (_, last) = SUPPORTED_VLLM
    assert NEWEST.startswith(f"{major}.{last - 1}."), "the newest supported minor version is the one to test"
