"""The long matrix: every test file, `full` tests included, on every supported vLLM. `make test-full` runs it.

Each file runs in a process of its own and its outcome is written at once to tests/full.json, which git ignores. So an
interrupted run continues where it was: what passed with the same sources is not run again.

    python scripts/test_full.py                                          on the installed vLLM
    python scripts/test_full.py --site .venv/vllm-VERSION --tests tests/engine    and on another; these tests only
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "tests/full.json"
SOURCES = ("vllm_optimal_sampling", "kernels", "tests", "examples", "setup.py", "pyproject.toml")
WORKERS = int(os.environ.get("WORKERS", "2"))


def tracked(*paths: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return sorted(file for file in files if file.exists())


def fingerprint() -> str:
    """Of everything that an outcome depends on, beside the installed packages."""
    digest = hashlib.sha256()
    for file in tracked(*SOURCES):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def run(test_file: Path, site: str | None) -> dict[str, Any]:
    """Run one file, with `site` before the installed packages, and count its outcomes."""
    environment = dict(os.environ)
    if site is not None:
        environment["PYTHONPATH"] = site
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", str(test_file)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        suite = ElementTree.parse(report).getroot().find("testsuite") if report.exists() else None
    counts = {name: int(suite.get(name, 0)) if suite is not None else 0 for name in ("tests", "skipped")}
    # Not by the counts alone: a crash or an empty file has none. 5: no test is left after skipping the whole file.
    passed = done.returncode == 0 or (done.returncode == 5 and counts["skipped"] > 0)
    if not passed:
        sys.stdout.write(done.stdout[-8000:] + done.stderr[-2000:])
    return {"passed": passed, **counts, "seconds": round(time.monotonic() - start)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, nargs="*", default=[], help="folders of other versions, vllm-VERSION")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="folders or files")
    given = parser.parse_args()
    versions: dict[str, str | None] = {version("vllm"): None}
    for folder in given.site:
        versions[folder.name.removeprefix("vllm-")] = str(folder.resolve())
    sources = fingerprint()
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    outcomes: dict[str, Any] = known.get("outcomes", {}) if known.get("sources") == sources else {}
    test_files = [file for file in tracked(*given.tests) if file.name.startswith("test_")]
    todo = [
        (name, file, site)
        for name, site in versions.items()
        for file in test_files
        if not outcomes.get(f"{name} {file.relative_to(ROOT)}", {}).get("passed")
    ]
    lock = Lock()

    def run_and_record(item: tuple[str, Path, str | None]) -> None:
        name, file, site = item
        key = f"{name} {file.relative_to(ROOT)}"
        outcome = run(file, site)
        with lock:
            outcomes[key] = outcome
            machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
            record = {"date": str(date.today()), "machine": machine, "sources": sources}
            RESULT.write_text(json.dumps(record | {"outcomes": dict(sorted(outcomes.items()))}, indent=1) + "\n")
            print(f"{key}: {outcome}", flush=True)

    print(f"{len(todo)} of {len(versions) * len(test_files)} left to run", flush=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(run_and_record, todo))
    failed = [key for key, outcome in outcomes.items() if not outcome["passed"]]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} passed", *failed, sep="\n")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
