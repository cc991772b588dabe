"""Patches are in place however a process comes upon vLLM's modules."""

from __future__ import annotations

import subprocess
import sys

LOOKED_FOR_FIRST = """
import importlib.util
from vllm_optimal_sampling.plugin import register
register()
name = "vllm.entrypoints.serve.utils.api_utils"
assert importlib.util.find_spec(name) is not None
from vllm.entrypoints.serve.utils import api_utils
print(getattr(api_utils.validate_json_request, "is_patched", False))
"""


def test_a_module_that_was_looked_for_before_it_is_imported_is_patched() -> None:
    """Tools ask whether there is a module (`importlib.util.find_spec`) and leave it at that."""
    done = subprocess.run([sys.executable, "-c", LOOKED_FOR_FIRST], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == "True"
