"""Triton kernels of optimal sampling, one operation per file."""

from .mix import mix_
from .record import MixRecord
from .scratch import MixScratch
from .settings import NEVER, Method, MixSettings

__all__ = ["NEVER", "Method", "MixRecord", "MixScratch", "MixSettings", "mix_"]
