"""The driver half of the backend, and its absence from Triton's list where nothing is interpreted.

The list itself matters: a CPU build of vLLM takes Triton for usable as soon as a backend is called `cpu`, active or
not, and then starts Model Runner V2, which fails at its first kernel. A plain engine on a CPU must not notice us.
"""

import sys
from types import ModuleType
from typing import Any, NoReturn

import triton.backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from vllm_optimal_sampling.interpreter import is_interpreting


class InterpreterDriver(DriverBase):
    """Answers what Triton and vLLM ask of a device driver while kernels run in the interpreter."""

    def __init__(self) -> None:
        """Nothing to open: the host is the device."""

    @staticmethod
    def is_active() -> bool:
        """Only while interpreting, and never beside a real device: Triton wants exactly one active driver."""
        drivers = [backend.driver for backend in triton.backends.backends.values()]
        others = [driver for driver in drivers if driver is not InterpreterDriver]
        return is_interpreting() and not any(driver.is_active() for driver in others)

    def map_python_to_cpp_type(self, ty: str) -> NoReturn:
        raise RuntimeError("the backend `cpu` launches nothing: kernels run in Triton's interpreter")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> Any:
        import torch  # Triton imports this module in processes that never need torch

        return torch.device("cpu")

    def get_current_device(self) -> int:
        return 0

    def get_benchmarker(self) -> NoReturn:
        raise RuntimeError("timings of Triton's interpreter say nothing: benchmark kernels on a GPU")


class _UntilFirstRead(ModuleType):
    """`triton.backends` between the discovery of its backends and the first look at them.

    Triton builds the list from the entry points of all installed packages and adds each one after importing it, so a
    backend cannot decline. The first read takes it out and turns the module back into an ordinary one.
    """

    @property
    def backends(self) -> dict[str, Any]:
        if "backends" not in self.__dict__:
            raise AttributeError("triton.backends is still looking for its backends")
        self.__class__ = ModuleType  # type: ignore[assignment]
        found: dict[str, Any] = self.__dict__["backends"]
        for name in [name for name, backend in found.items() if backend.driver is InterpreterDriver]:
            del found[name]
        return found


if not is_interpreting():
    sys.modules["triton.backends"].__class__ = _UntilFirstRead
