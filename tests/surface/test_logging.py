"""The package's own log lines are vLLM's in level, format and place, however and whenever vLLM's logging is configured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "vLLM's own": {},
    "warnings": {"log_level": "WARNING"},
    "vLLM's own again": {},
    "a file that names the package": {"pylogging_config_file": "{folder}/logging.json"},
    "none": {"configure_logging": False},
}
"""Fields of vLLM's `LoggingConfig`, configured one after the other in one process, as engines do."""

CODE = """
import json, logging, sys
from vllm_optimal_sampling.plugin import register
register()
from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging, init_logger

theirs, ours = init_logger("vllm.engine"), logging.getLogger("vllm_optimal_sampling.worker.theta.speculator")
for name, fields in json.loads(sys.argv[1]).items():
    if fields.get("configure_logging") is False:  # as a program that configures the root's logger itself
        for logger in (logging.getLogger("vllm"), logging.getLogger("vllm_optimal_sampling")):
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
        logging.basicConfig(level="INFO", stream=sys.stdout, format="mine: %(message)s", force=True)
    configure_logging(LoggingConfig(**fields))
    print(f"== {name}", flush=True)
    theirs.info("theirs")
    ours.info("ours")
    ours.warning("a warning")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logging")


@pytest.fixture(scope="module")
def lines(folder: Path) -> dict[str, list[str]]:
    """What each case printed."""
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": str(folder / "ours.log")}},
        "loggers": {"vllm_optimal_sampling": {"handlers": ["file"], "level": "WARNING", "propagate": False}},
    }
    (folder / "logging.json").write_text(json.dumps(config))
    cases = json.dumps(CASES).replace("{folder}", str(folder))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_LOGGING")}
    command = [sys.executable, "-c", CODE, cases]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ours" not in done.stderr and "a warning" not in done.stderr
    sections = re.split(r"^== (.*)\n", done.stdout, flags=re.M)[1:]
    return {name: text.splitlines() for name, text in zip(sections[::2], sections[1::2], strict=True)}


@pytest.mark.parametrize("case", ["vLLM's own", "vLLM's own again"])
def test_an_information_is_shown_as_vllm_shows_its_own(case: str, lines: dict[str, list[str]]) -> None:
    theirs, ours, warning = lines[case]
    shape = re.compile(r"(.*) INFO (\d\d-\d\d \d\d:\d\d:\d\d) \[.*:\d+\] (.*)")
    found, expected = shape.fullmatch(ours), shape.fullmatch(theirs)
    assert found is not None and expected is not None, lines[case]
    assert found[1] == expected[1], "vLLM's prefix names the process"
    assert found[3] == "ours" and expected[3] == "theirs"
    assert " WARNING " in warning


def test_vllms_level_holds(lines: dict[str, list[str]]) -> None:
    (warning,) = lines["warnings"]
    assert warning.endswith("a warning")


def test_a_configuration_that_names_the_package_decides(lines: dict[str, list[str]], folder: Path) -> None:
    assert (folder / "ours.log").read_text() == "a warning\n"
    assert not [line for line in lines["a file that names the package"] if "ours" in line or "a warning" in line]


def test_without_vllms_configuration_the_programs_own_holds(lines: dict[str, list[str]]) -> None:
    assert {"mine: theirs", "mine: ours", "mine: a warning"} <= set(lines["none"])
