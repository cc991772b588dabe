"""The entry point `vllm.general_plugins`: vLLM calls `register` in every process, before it builds anything."""

from __future__ import annotations

_registered = False


def register() -> None:
    """Put the hooks in place (see `hooks`) and make Triton's interpreter fit for vLLM where it is in use."""
    global _registered
    if _registered:
        return
    _registered = True
    from vllm_optimal_sampling import hooks
    from vllm_optimal_sampling.interpreter import gaps, shortcuts

    gaps.fill()
    shortcuts.take()
    hooks.install()
