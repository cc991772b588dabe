"""Jobs that wait for each other, a time that ends, and what a second call still does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from real_model.jobs import Job, work_through


def leave(path: Path, log: Path, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    with log.open("a") as file:
        file.write(f"{path.name}\n")
    path.touch()


def fail(path: Path) -> None:
    raise ValueError(f"{path.name} cannot be made")


def call(jobs: list[Job], seconds: float = 60.0) -> list[str]:
    missing = work_through(jobs, 1, time.monotonic() + seconds, lambda: True)
    return [job.path.name for job in missing]


def test_each_job_waits_for_what_it_needs_and_is_done_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    jobs = [
        Job(third, leave, (third, log), (second, first)),
        Job(first, leave, (first, log)),
        Job(second, leave, (second, log), (first,)),
    ]
    assert call(jobs) == []
    assert call(jobs) == []
    assert log.read_text().split() == ["first", "second", "third"]


def test_time_ends_what_runs_and_the_next_call_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    quick, slow = tmp_path / "quick", tmp_path / "slow"
    quick.touch()
    started = time.monotonic()
    assert call([Job(quick, leave, (quick, log)), Job(slow, leave, (slow, log, 600.0))], seconds=3.0) == ["slow"]
    assert time.monotonic() - started < 60
    assert not slow.exists() and not log.exists()
    assert call([Job(quick, leave, (quick, log)), Job(slow, leave, (slow, log))]) == []
    assert log.read_text().split() == ["slow"]


def test_a_no_ends_it(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "two")]
    jobs = [Job(path, leave, (path, tmp_path / "log")) for path in paths]
    missing = work_through(jobs, 1, time.monotonic() + 60, lambda: not paths[0].exists())
    assert [job.path.name for job in missing] == ["two"]


def test_an_error_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad cannot be made"):
        call([Job(tmp_path / "bad", fail, (tmp_path / "bad",))])
    with pytest.raises(RuntimeError, match="waits for what no job makes"):
        call([Job(tmp_path / "bad", fail, (tmp_path / "bad",), (tmp_path / "nothing",))])
