"""The entry point `vllm.general_plugins`: vLLM calls `register` in every process, before it builds anything."""

from __future__ import annotations

import ctypes
import logging
import os
import signal

FRONT_END = "OPTIMAL_SAMPLING_FRONT_END"
"""Set to its process id by a front end that answers the terminal's signals for its engine, see `_follow_front_end`."""

_registered = False


def register() -> None:
    """Put the hooks in place (see `hooks`) and make Triton's interpreter fit for vLLM where it is in use."""
    global _registered
    if _registered:
        return
    _registered = True
    _log_as_vllm()
    _follow_front_end()
    from vllm_optimal_sampling.hooks import imports
    from vllm_optimal_sampling.interpreter import gaps, shortcuts

    gaps.fill()
    shortcuts.take()
    imports.install()


def _log_as_vllm() -> None:
    """Give this package's loggers the level, the handlers and the format of vLLM's, in whichever way those are set.

    vLLM configures its own logger alone, and does so again when an engine has a logging configuration. Copies of its level and
    handlers would be out of date then; as a child of its logger, ours always has what it has. The parent of a logger without a
    dot in its name is changed by nobody else. Who names `vllm_optimal_sampling` in a logging configuration still decides.
    """
    logging.getLogger("vllm_optimal_sampling").parent = logging.getLogger("vllm")


PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>: the signal that a process gets when its parent ends."""


def _follow_front_end() -> None:
    """Make the life of an engine's process that of its front end, if the front end asks for it.

    Ctrl-C is sent to all processes of the terminal's group, and ends vLLM's engine at once: a front end that means to
    finish what is running wants to be the only one that hears it. And an engine whose front end was killed (SIGKILL, the
    out-of-memory killer) keeps the GPU's memory for minutes, in which no other can start.
    """
    front_end = os.environ.get(FRONT_END)
    if front_end is None or front_end == str(os.getpid()):
        return
    os.setpgid(0, 0)
    if str(os.getppid()) == front_end:  # workers of several ranks are children of the engine, and watch it themselves
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if str(os.getppid()) != front_end:
            os.kill(os.getpid(), signal.SIGKILL)
