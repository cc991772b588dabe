"""The entry point `vllm.general_plugins`: vLLM calls `register` in every process, before it builds anything."""

from __future__ import annotations

import os

FRONT_END = "VLLM_OPTIMAL_SAMPLING_FRONT_END"
"""Set to its process id by a front end that answers the terminal's signals for its engine, see `_leave_terminal`."""

_registered = False


def register() -> None:
    """Put the hooks in place (see `hooks`) and make Triton's interpreter fit for vLLM where it is in use."""
    global _registered
    if _registered:
        return
    _registered = True
    _leave_terminal()
    from vllm_optimal_sampling import hooks
    from vllm_optimal_sampling.interpreter import gaps, shortcuts

    gaps.fill()
    shortcuts.take()
    hooks.install()


def _leave_terminal() -> None:
    """Take an engine's process out of the terminal's group if its front end asks for that.

    Ctrl-C is sent to the whole group, and ends vLLM's engine processes at once. A front end that means to finish what
    is running wants to be the only one that hears it.
    """
    front_end = os.environ.get(FRONT_END)
    if front_end is not None and front_end != str(os.getpid()):
        os.setpgid(0, 0)
