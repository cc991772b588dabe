"""The backend `cpu` is there while Triton interprets and leaves no trace otherwise, each case in a new process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPORT = """
import json, sys, types
import triton
from triton.backends import backends
from triton.runtime.driver import driver
try:
    target = driver.active.get_current_target().backend
except RuntimeError as error:
    target = str(error)
module = sys.modules["triton.backends"]
print(json.dumps({
    "backends": sorted(backends), "target": target,
    "ordinary": type(module) is types.ModuleType and vars(module)["backends"] is backends,
}))
"""


def run(code: str, interpret: str | None, **environment: str) -> str:
    """The last line that `code` prints in a new process with TRITON_INTERPRET as given."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    if interpret is not None:
        variables["TRITON_INTERPRET"] = interpret
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


has_gpu = torch.cuda.is_available


@pytest.mark.parametrize("interpret", [None, "0", ""])
def test_invisible_unless_interpreting(interpret: str | None) -> None:
    report = json.loads(run(REPORT, interpret))
    assert report["backends"] == ["amd", "nvidia"]
    assert report["ordinary"]
    if not has_gpu():
        assert report["target"].startswith("0 active drivers")


def test_active_while_interpreting() -> None:
    report = json.loads(run(REPORT, "1"))
    assert report["backends"] == ["amd", "cpu", "nvidia"]
    assert report["target"] == ("cuda" if has_gpu() else "cpu")


OTHER_DRIVER = """
from triton.backends.driver import DriverBase
from triton.backends.compiler import GPUTarget

class OtherDriver(DriverBase):
    @staticmethod
    def is_active(): return True
    def map_python_to_cpp_type(self, ty): raise NotImplementedError
    def get_current_target(self): return GPUTarget("other", 0, 1)
    def get_active_torch_device(self): raise NotImplementedError
    def get_benchmarker(self): raise NotImplementedError
"""

OTHER_COMPILER = """
from triton.backends.compiler import BaseBackend

class OtherBackend(BaseBackend):
    @staticmethod
    def supports_target(target): return target.backend == "other"
    def hash(self): return "other"
    def parse_options(self, options): raise NotImplementedError
    def add_stages(self, stages, options, language): raise NotImplementedError
    def load_dialects(self, context): pass
    def get_module_map(self): return {}
"""


@pytest.mark.parametrize("interpret", [None, "1"])
def test_another_active_backend_keeps_its_place(tmp_path: Path, interpret: str | None) -> None:
    """Triton refuses two active drivers, so ours steps back: what a GPU machine has, shown without one."""
    if has_gpu():
        pytest.skip("the other backend would be the second active one beside CUDA's")
    package, metadata = tmp_path / "other_backend", tmp_path / "other_backend-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").touch()
    (package / "driver.py").write_text(OTHER_DRIVER)
    (package / "compiler.py").write_text(OTHER_COMPILER)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-backend\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[triton.backends]\nother = other_backend\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    report = json.loads(run(REPORT, interpret, PYTHONPATH=path))
    assert report["target"] == "other"
    assert ("cpu" in report["backends"]) == (interpret == "1")


@pytest.mark.parametrize(("interpret", "expected"), [(None, "False"), ("1", "True")])
def test_vllm_takes_triton_for_usable_only_while_interpreting(interpret: str | None, expected: str) -> None:
    """A plain engine on a CPU would otherwise choose Model Runner V2 and fail at its first kernel."""
    if has_gpu():
        pytest.skip("a GPU machine has Triton either way")
    assert run("from vllm.triton_utils import HAS_TRITON; print(HAS_TRITON)", interpret) == expected


def test_the_package_imports_nothing_heavy() -> None:
    """Triton imports it in every process, so it may not bring a library along."""
    code = """
import sys
import vllm_optimal_sampling.interpreter, vllm_optimal_sampling.interpreter.gaps
import vllm_optimal_sampling.interpreter.shortcuts
print(sorted({"torch", "triton", "numpy", "vllm", "transformers"} & set(sys.modules)))
"""
    assert run(code, "1") == "[]"


def test_compiling_is_refused_in_words() -> None:
    code = """
from triton.backends import backends
from triton.backends.compiler import GPUTarget
try:
    backends["cpu"].compiler(GPUTarget("cpu", 0, 1)).parse_options({})
except RuntimeError as error:
    print(error)
"""
    assert "set TRITON_INTERPRET=1" in run(code, "1")
