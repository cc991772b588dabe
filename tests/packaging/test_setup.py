"""scripts/setup.sh says in one sentence what a machine lacks, and never takes half an environment for a whole one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
VERSIONS = "vllm_optimal_sampling/config/versions.py"
TOOLS = ["awk", "bash", "cat", "cksum", "df", "dirname", "flock", "grep", "mkdir", "rm", "tail", "touch", "uname"]

OLD_PYTHON = '[ "$1" = -V ] && echo "Python 3.9.2"; [ "$1" = -V ]'
NO_VENV = 'case "$2" in *ensurepip*) exit 1 ;; esac'
NO_LIBRARY = 'case "$2" in *libnuma*) exit 1 ;; esac'
SUITS = "exit 0"
LITTLE_DISK = 'echo Filesystem; echo "/dev/disk 99999999 99999999 2097152 99% /"'
GPU = 'echo "GPU 0: NVIDIA"'


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what setup.sh reads, and bin/ with the machine's tools but no Python and no GPU."""
    shutil.copytree(ROOT / "scripts", tmp_path / "clone/scripts", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    shutil.copy(ROOT / "setup.py", tmp_path / "clone")
    (tmp_path / "clone" / VERSIONS).parent.mkdir(parents=True)
    shutil.copy(ROOT / VERSIONS, tmp_path / "clone" / VERSIONS)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        if path is not None:
            (tmp_path / "bin" / tool).symlink_to(path)
    return tmp_path / "clone"


def pretend(clone: Path, **programs: str) -> None:
    """Put programs into bin/ whose body is the given shell text; python3 is written python."""
    for name, body in programs.items():
        program = clone.parent / "bin" / name.replace("nvidia", "nvidia-smi").replace("python", "python3")
        program.unlink(missing_ok=True)
        program.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        program.chmod(0o755)


def set_up(clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": str(clone.parent / "bin"), "HOME": str(clone.parent)} | environment
    script = str(clone / "scripts/setup.sh")
    return subprocess.run(
        [str(clone.parent / "bin/bash"), script], env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("programs", "sentence"),
    [
        ({}, "setup: Python 3.11 to 3.14 is needed and python3 is missing; install one"),
        ({"python": OLD_PYTHON}, "setup: Python 3.11 to 3.14 is needed and python3 is Python 3.9.2; install one"),
        ({"python": NO_VENV}, "setup: python3 has no module venv with pip in it; install it"),
        ({"python": NO_LIBRARY}, "setup: vLLM's CPU build needs libnuma.so.1; install it"),
        ({"python": SUITS, "df": LITTLE_DISK}, "GiB of disk are needed for .venv and 2 GiB are free"),
        ({"uname": "echo Darwin"}, "setup: vLLM runs on Linux; this is Darwin."),
        (
            {"uname": '[ "$1" = -s ] && echo Linux || echo riscv64'},
            "setup: vLLM has no build for riscv64; x86_64 and aarch64 are supported.",
        ),
        ({"python": SUITS, "nvidia": GPU}, "setup: Triton needs a C compiler on a GPU machine; install gcc."),
    ],
    ids=["no python", "old python", "no venv", "no libnuma", "little disk", "other system", "other machine", "no gcc"],
)
def test_what_is_missing_is_one_sentence(clone: Path, programs: dict[str, str], sentence: str) -> None:
    pretend(clone, **programs)
    done = set_up(clone)
    assert done.returncode != 0
    assert done.stdout == ""
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (clone / ".venv").exists()


def test_unknown_device(clone: Path) -> None:
    done = set_up(clone, DEVICE="tpu")
    assert done.returncode != 0
    assert done.stderr == "setup: DEVICE=tpu is not a device; use cpu or gpu.\n"


def test_an_environment_of_the_user_is_left_alone(clone: Path) -> None:
    pretend(clone, python=SUITS)
    (clone / ".venv").mkdir()
    (clone / ".venv/mine").touch()
    done = set_up(clone)
    assert done.returncode != 0
    assert done.stderr == "setup: .venv was not made by this script; move it away.\n"
    assert (clone / ".venv/mine").exists()


def test_what_an_interruption_left_is_made_again(clone: Path) -> None:
    """With no index to install from, a set-up ends after making the environment; the next one begins from nothing."""
    offline = {"PYTHON": sys.executable, "PIP_NO_INDEX": "1", "DEVICE": "cpu", "PIP_CONFIG_FILE": os.devnull}
    for _ in range(2):
        done = set_up(clone, **offline)
        assert done.returncode != 0
        assert "setup: pip failed; the whole story is in .venv/setup.log." in done.stderr
        assert "Traceback" not in done.stderr
        assert not (clone / ".venv/ready").exists()
        assert not (clone / ".venv/left-over").exists()
        (clone / ".venv/left-over").touch()
