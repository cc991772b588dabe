"""What every way of sampling takes and gives, so that one benchmark can run them all."""

from __future__ import annotations

import resource
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from prompts import Prompt


@dataclass(frozen=True)
class Settings:
    """The same for all methods of a run."""

    teacher: str
    theta: str
    max_num_seqs: int
    max_model_len: int
    kv_cache_bytes: int
    num_speculative_tokens: int = 4
    schedule: tuple[tuple[int, int, int], ...] | None = None
    """`num_speculative_tokens_per_batch_size`."""
    temperature: float = 0.8
    dtype: str = "float32"
    enforce_eager: bool = True
    inductor: bool = False
    """vLLM's default compilation where there are graphs; else graphs alone, which start sooner."""
    load_format: str = "auto"
    """"dummy": made-up weights."""
    synthetic_acceptance: bool = False
    """Accept drafts at a given rate, whatever they are; `Method.set_acceptance` sets it."""


@dataclass(frozen=True)
class Counters:
    """Counts since a method was started; a method has those it knows."""

    steps: int | None = None
    """Forwards of the engine (the teacher's, where there are both), those of prompts included."""
    rounds: int | None = None
    """Verifications of a request's drafts."""
    drafted: int | None = None
    accepted: int | None = None

    def since(self, before: Counters) -> Counters:
        pairs = zip(vars(self).items(), vars(before).values(), strict=True)
        return Counters(**{name: None if now is None else now - then for (name, now), then in pairs})


class Method(ABC):
    """One way of sampling, loaded and ready."""

    name: ClassVar[str]
    what: ClassVar[str]
    """One line for the table's legend."""

    @abstractmethod
    def __init__(self, settings: Settings) -> None:
        """Load the models and whatever else a start takes."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], max_tokens: int, seed: int) -> list[list[int]]:
        """`max_tokens` tokens for each prompt, also past an end of text; completion i is drawn with seed + i."""

    def counters(self) -> Counters:
        return Counters()

    def set_acceptance(self, rate: float) -> None:
        """Accept each draft with this probability from now on."""
        raise NotImplementedError(f"{self.name} has no drafts to accept")

    def memory(self) -> dict[str, float]:
        """GiB held: on a GPU the peak of torch's allocator, else the process's largest resident size, `rss_peak`."""
        import torch

        if torch.cuda.is_available():
            peak = {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        else:
            peak = {"rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        return {name: size / 2**30 for name, size in peak.items()}

    def close(self) -> None:  # noqa: B027  not every method holds something
        """Give back what the method holds; the process ends soon after."""
