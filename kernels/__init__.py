"""Triton kernels of optimal sampling, one operation per file: `vllm_optimal_sampling.kernels`.

Where the repository's root is on Python's path, this folder also answers to the bare name `kernels`, which is that of
Hugging Face's package. Under that name it hands over to their package, and is an empty one where theirs is not installed.
"""

if __name__ == "kernels":
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    _root = Path(__file__).resolve().parents[1]
    _spec = PathFinder.find_spec(__name__, [entry for entry in sys.path if Path(entry).resolve() != _root])
    if _spec is not None and _spec.origin is not None and _spec.loader is not None:
        sys.modules[__name__] = module_from_spec(_spec)  # what `import kernels` then returns
        _spec.loader.exec_module(sys.modules[__name__])
    else:
        # No file and no version: transformers takes that for not installed.
        del __file__
        __path__.clear()
else:
    from .drawn_tokens import drawn_tokens
    from .mix import mix_
    from .record import Kind, MixRecord
    from .scratch import MixScratch
    from .settings import NEVER, Method, MixSettings, Search
    from .tally import tally
    from .token_logprobs import token_logprobs
    from .warm_up import WarmUp

__all__ = [
    "NEVER",
    "Kind",
    "Method",
    "MixRecord",
    "MixScratch",
    "MixSettings",
    "Search",
    "WarmUp",
    "drawn_tokens",
    "mix_",
    "tally",
    "token_logprobs",
]
