"""Whether there is a GPU, and what lets engines of several tests share it."""

from __future__ import annotations

from typing import Any

import torch

ON_GPU = torch.cuda.is_available()

# A card is shared with engines of other tests. The cache is given in bytes, so this is only checked.
GPU_OPTIONS: dict[str, Any] = {"gpu_memory_utilization": 0.05} if ON_GPU else {}
