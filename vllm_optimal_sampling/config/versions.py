"""The vLLM versions that this package works with: the one place that names them."""

from __future__ import annotations

import re

SUPPORTED_VLLM = ((0, 32), (0, 34))
"""First version that is supported, and first that no longer is."""


def is_supported_version(version: str | None = None) -> bool:
    """Whether a vLLM version is in the supported range: 0.32 and 0.33, whatever follows.

    Args:
        version: such as "0.32.0+cpu"; the installed vLLM's by default.

    """
    if version is None:
        from vllm.version import __version__

        version = str(__version__)
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers is None:
        return False
    first, last = SUPPORTED_VLLM
    return first <= (int(numbers[1]), int(numbers[2])) < last
