"""Kernels on tensors of the CPU's memory where kernels run on a GPU, so that their tests write and read what they look at.

A launch gets copies on the device, of whole storages: strides, offsets and what tensors share stay as they are, as does what
lies around them. What it leaves is copied back. Engines have their tensors on the device, and launch as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime import JITFunction
from vllm_optimal_sampling.kernels.prepared_launch import Launch, PreparedLaunch

from vllm_optimal_sampling.interpreter import is_interpreting


class DeviceCopies:
    """Copies of tensors of the CPU's memory on a device."""

    def __init__(self, device: torch.device | str):
        self.device = device
        self._storages: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """The bytes of each storage, and of its copy."""

    def of(self, value: Any) -> Any:
        """A tensor's copy; anything else as it is."""
        if not isinstance(value, torch.Tensor) or not value.is_cpu:
            return value
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._storages:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._storages[storage.data_ptr()] = whole, whole.to(self.device, copy=True)
        copy = self._storages[storage.data_ptr()][1].untyped_storage()
        empty = torch.empty(0, dtype=value.dtype, device=self.device)
        return empty.set_(copy, value.storage_offset(), value.shape, value.stride())

    def copy_back(self) -> None:
        """Write to the tensors what is in their copies."""
        for whole, copy in self._storages.values():
            whole.copy_(copy)


@contextmanager
def launches_on_copies(kernels: type = JITFunction, device: str = "cuda") -> Iterator[None]:
    """Launch kernels on copies of what lies in the CPU's memory.

    Args:
        kernels: the class of those that Triton compiled.
        device: that they run on.
    """
    run: Any = kernels.run  # type: ignore[attr-defined]
    prepare = PreparedLaunch.of

    def run_on_copies(self: Any, *args: Any, **named: Any) -> Any:
        copies = DeviceCopies(device)
        result = run(self, *map(copies.of, args), **{name: copies.of(value) for name, value in named.items()})
        copies.copy_back()
        return result

    def prepare_on_device(launch: Launch, *rest: Any) -> PreparedLaunch | None:
        has_copies = any(isinstance(value, torch.Tensor) and value.is_cpu for value in launch.arguments.values())
        return None if has_copies else prepare(launch, *rest)

    kernels.run = run_on_copies  # type: ignore[attr-defined]
    PreparedLaunch.of = prepare_on_device  # type: ignore[assignment]
    try:
        yield
    finally:
        kernels.run = run  # type: ignore[attr-defined]
        PreparedLaunch.of = prepare  # type: ignore[method-assign]


@contextmanager
def launches_where_kernels_run() -> Iterator[None]:
    """`launches_on_copies` on a machine with a GPU; nothing where Triton interprets."""
    if is_interpreting() or not torch.cuda.is_available():
        yield
        return
    with launches_on_copies():
        yield
