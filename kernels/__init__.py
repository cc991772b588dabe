"""Triton kernels of optimal sampling, one operation per file."""

from .mix import mix_
from .record import Kind, MixRecord
from .scratch import MixScratch
from .settings import NEVER, Method, MixSettings
from .tally import tally
from .token_logprobs import token_logprobs
from .warm_up import warm_up

__all__ = [
    "NEVER",
    "Kind",
    "Method",
    "MixRecord",
    "MixScratch",
    "MixSettings",
    "mix_",
    "tally",
    "token_logprobs",
    "warm_up",
]
