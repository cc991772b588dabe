"""Triton's interpreter as a backend called `cpu`, so that vLLM's Model Runner V2 runs on a machine without a GPU.

Triton imports `compiler` and `driver` of every entry point of its group `triton.backends`, in every process that
imports Triton. So this package imports nothing by itself, and without `TRITON_INTERPRET=1` it leaves nothing behind.

    compiler   a backend that never compiles
    driver     stands in for a device driver, and takes itself out of Triton's list where nothing is interpreted
    gaps       repairs what the interpreter lacks for vLLM's kernels
    shortcuts  the same results in a fraction of the time
    blocks     shortcuts through large blocks, which are most of a mix
    launching  a shortcut through launches, of which much is the same each time
    operators  shortcuts through operators on tensors, whose types are found out once
"""

import os

__all__ = ["is_interpreting"]


def is_interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter; the same words count as true for Triton."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")
