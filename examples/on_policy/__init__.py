"""Theta is trained on what is drawn while it is trained: the experiment behind examples/on_policy/README.md."""

from pathlib import Path

from distillation import PAIR  # it finds `task` and `measure`, and `recording`

HERE = Path(__file__).parent

__all__ = ["HERE", "PAIR"]
