"""Triton kernels of optimal sampling, one operation per file."""

from .mix import mix_
from .record import Kind, MixRecord
from .relax_top_p import relax_top_p_
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
    "relax_top_p_",
    "tally",
    "token_logprobs",
    "warm_up",
]
