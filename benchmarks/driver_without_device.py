"""Triton on a machine without a GPU, up to the point where CUDA's driver is called: kernels are compiled for an H200, bound and
launched by Triton's own code, and a library of ours in the place of CUDA's driver takes the launch and runs nothing.

What a launch costs the host can be measured so, but for what the driver does, and what reaches the driver can be looked at.
Tensors lie in the CPU's memory and are never read or written. It has to be installed before anything loads CUDA's driver,
and needs a C compiler, as Triton does.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "libcuda.so.1"
SM_90 = 90
SIZES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8}
"""Bytes of a kernel's parameter; of every pointer 8."""


class Launched(NamedTuple):
    """A launch as it reached CUDA's driver."""

    function: int
    """A number for each kernel that was loaded."""
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    stream: int
    parameters: tuple[int, ...]
    """Addresses and whole numbers; bits, where a parameter is no whole number."""


class DriverWithoutDevice:
    """What took the place of CUDA's driver, and of Triton's knowledge of the device and its streams."""

    def __init__(self, library: ctypes.CDLL, folder: tempfile.TemporaryDirectory[str]):
        self.device = 0
        """What Triton is told to be the current device."""
        self.stream = 0
        """And its current stream."""
        self._library = library
        self._folder = folder  # deleted with this object

    @classmethod
    def install(cls) -> DriverWithoutDevice:
        """Make Triton launch here from now on, in this process. Raises RuntimeError in Triton's interpreter."""
        if os.environ.get("TRITON_INTERPRET") == "1":
            raise RuntimeError("TRITON_INTERPRET=1 leaves no kernels to be compiled; start Python without it")
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / LIBRARY
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", str(path), str(SOURCE)], check=True
        )
        # What asks for a library of this name later gets the one that is loaded.
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        os.environ["TRITON_LIBCUDA_PATH"] = folder.name
        installed = cls(library, folder)
        _make_active(installed)
        return installed

    @property
    def num_launches(self) -> int:
        return ctypes.c_long.in_dll(self._library, "num_launches").value

    def launches_of(self, call: Callable[[], object], types: dict[int, list[str]]) -> list[Launched]:
        """The launches of a call.

        Args:
            types: Triton's types of each function's parameters, as `types_of` has them.
        """
        found: list[Launched] = []

        def on_launch(config: int, function: int, parameters: int) -> None:
            # CUlaunchConfig: grid, threads, bytes of shared memory, stream.
            x, y, z, threads, _, _, shared_bytes, _, stream = struct.unpack("8IQ", ctypes.string_at(config, 40))
            values = []
            for place, type_name in enumerate(types[function]):
                address = ctypes.c_void_p.from_address(parameters + 8 * place).value
                values.append(int.from_bytes(ctypes.string_at(address, SIZES.get(type_name, 8)), "little"))
            found.append(Launched(function, (x, y, z), threads, shared_bytes, stream, tuple(values)))

        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        callback = prototype(on_launch)
        hook = ctypes.c_void_p.in_dll(self._library, "on_launch")
        hook.value = ctypes.cast(callback, ctypes.c_void_p).value
        try:
            call()
        finally:
            hook.value = None
        return found


def types_of(compiled: Any) -> list[str]:
    """Triton's types of what a compiled kernel is launched with."""
    return [name for name in compiled.src.signature.values() if name != "constexpr"]


def _make_active(installed: DriverWithoutDevice) -> None:
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils
    from triton.runtime import driver

    class Driver(CudaDriver):
        """Triton's, without what it asks torch."""

        def __init__(self) -> None:
            self.utils = CudaUtils()
            self.launcher_cls = CudaLauncher

        def get_current_device(self) -> int:
            return installed.device

        def get_current_stream(self, device: int) -> int:
            return installed.stream

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", SM_90, 32)

        def get_device_capability(self, device: int) -> tuple[int, int]:
            return divmod(SM_90, 10)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    driver.set_active(Driver())
