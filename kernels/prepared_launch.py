"""Launch a compiled kernel again, without what Triton does on every launch to find out which one it is.

`kernel[grid](..)` binds its arguments by name, asks each for its type, alignment and value, makes a key of the answers,
looks the compiled kernel up by it, and compares every global constant that the kernel uses with the value it was compiled
with: 30 to 50 microseconds a launch. What it returns is the compiled kernel, which can be launched by itself (Triton's
tutorial on fused softmax does so): `compiled[grid](*arguments)`, in 2.

Then nothing asks any more whether the arguments are those that the kernel was compiled for. So an argument that may change
from launch to launch is named beforehand, and `PreparedLaunch.of` looks at what Triton took for granted of it: its type, and
at most that it is divisible by 16, which is for the caller to keep. Every other argument stays the one of the first launch.
The stream and the device are those of each launch. Triton's hooks on launches run as ever; a kernel with a hook of its own,
a kernel for another kind of device and a release of Triton that the contract test (tests/kernels/test_prepared_launch.py)
was not run with are launched as usual.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime import driver

TESTED_TRITON = (3, 6), (3, 9)
"""The oldest and the newest release, both with those in between."""

DIVISIBLE_BY_16 = [["tt.divisibility", 16]]


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    """By name, all of them."""
    num_warps: int

    def __call__(self) -> Any:
        """Launch as Triton does it. Returns the compiled kernel, or None in Triton's interpreter."""
        return self.kernel[self.grid](**self.arguments, num_warps=self.num_warps)


class PreparedLaunch:
    """A launch that was made once, to be made again with other values of some arguments."""

    __slots__ = ("arguments", "compiled", "places")

    def __init__(self, compiled: Any, arguments: list[Any], places: list[tuple[str, int]]):
        self.compiled = compiled
        self.arguments = arguments
        self.places = places

    @classmethod
    def of(
        cls, launch: Launch, compiled: Any, changing: Collection[str], divisible: Collection[str]
    ) -> PreparedLaunch | None:
        """Prepare a launch that `launch()` has just made.

        Args:
            launch: as it was made; its tensors are kept by their addresses, and have to outlive what is returned.
            compiled: what it returned.
            changing: names of arguments that the next launches give new values, those that the kernel has of them.
            divisible: those of them that stay divisible by 16 if they were.

        Returns:
            None if Triton took more for granted than that, or is not known to be launched so.
        """
        if not (is_known_triton() and isinstance(compiled, triton.compiler.CompiledKernel)):
            return None
        names = launch.kernel.arg_names
        source = compiled.src
        if compiled.metadata.target.backend != "cuda" or list(source.signature) != names or launch.kernel.pre_run_hooks:
            return None
        places = [(name, place) for place, name in enumerate(names) if name in changing]
        for name, place in places:
            taken_for_granted = source.attrs.get((place,), [])
            if source.signature[name] == "constexpr":
                return None
            if taken_for_granted and not (name in divisible and taken_for_granted == DIVISIBLE_BY_16):
                return None
        return cls(compiled, [_plain(launch.arguments[name]) for name in names], places)

    def run(self, grid: tuple[int, int, int], stream: int, values: Mapping[str, int]) -> None:
        """Launch.

        Args:
            grid: programs in each dimension.
            stream: of the device that the kernel was compiled on.
            values: at least those that change: numbers, and addresses of tensors.
        """
        arguments = self.arguments
        for name, place in self.places:
            arguments[place] = values[name]
        self.compiled[grid](*arguments, stream=stream)


class RepeatedLaunches:
    """Launches of a kernel that is called in every step: the first of a kind as Triton makes it, those like it prepared.

    It lies beside its kernel, and remembers kinds of launches as Triton remembers what it compiled. Two are of a kind if
    they differ in `changing` alone, and Triton takes the same for granted of those.

    Args:
        changing: names of arguments with which launches of a kind differ: tensors, None, and numbers that the kernel's
            `do_not_specialize` has.
    """

    MOST_KINDS = 64
    """How many are remembered. A few are usual."""

    def __init__(self, changing: Collection[str]):
        self.changing = frozenset(changing)
        self.prepared: dict[tuple[Any, ...], PreparedLaunch | None] = {}

    def kind_of(self, launch: Launch) -> tuple[Any, ...]:
        """What tells a launch from those of other kinds."""
        kind = [current_device(), launch.num_warps]
        for name, value in launch.arguments.items():
            if isinstance(value, torch.Tensor):
                address = value.data_ptr()
                kind += (value.dtype, address % 16 if name in self.changing else address)
            elif value is None or name not in self.changing:
                kind.append(value)
        return tuple(kind)

    def run(self, launch: Launch) -> None:
        """Launch."""
        if not isinstance(launch.kernel, triton.runtime.JITFunction):
            launch()  # in Triton's interpreter
            return
        kind = self.kind_of(launch)
        if kind not in self.prepared:
            if len(self.prepared) >= self.MOST_KINDS:
                self.prepared.clear()
            given = [name for name in self.changing if launch.arguments[name] is not None]
            self.prepared[kind] = PreparedLaunch.of(launch, launch(), given, given)
            return
        prepared = self.prepared[kind]
        if prepared is None:
            launch()
            return
        values = {name: _plain(launch.arguments[name]) for name, _ in prepared.places}
        prepared.run(launch.grid, current_stream(kind[0]), values)


def is_known_triton() -> bool:
    """Whether this release of Triton lies within `TESTED_TRITON`."""
    major, minor = triton.__version__.split(".")[:2]
    oldest, newest = TESTED_TRITON
    return oldest <= (int(major), int(minor)) <= newest


def current_device() -> int:
    """The device that Triton launches on."""
    return driver.active.get_current_device()


def current_stream(device: int) -> int:
    """The stream that Triton launches in."""
    return driver.active.get_current_stream(device)


def _plain(argument: Any) -> Any:
    """A tensor's address, which the launcher takes as it is; of a tensor it would ask the driver where it lies."""
    return argument.data_ptr() if hasattr(argument, "data_ptr") else argument
