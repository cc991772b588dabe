"""What a run asks of whatever draws its samples: an engine of its own, or a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from vllm_optimal_sampling.data.generate.jobs import Sample
from vllm_optimal_sampling.data.generate.progress import Figures
from vllm_optimal_sampling.data.generate.templates import Prompts


@dataclass(frozen=True)
class Prepared:
    """A row's prompts, ready for any number of samples."""

    request: Any
    """Whatever the sampler made of them."""
    theta_ids: list[int] | None
    """Theta's prompt as tokens, None where the sampler does not know them."""


class Sampler(Protocol):
    """Draws samples from q*."""

    max_in_flight: int
    """How many completions it is worth asking for at a time."""

    async def prepare(self, prompts: Prompts) -> Prepared:
        """Make requests of a row's prompts.

        Raises:
            RowError: they are refused.

        """

    async def sample(self, prepared: Prepared, request_id: str, seed: int | None) -> list[Sample]:
        """Draw the candidates of one sample: as many as the settings' `best_of`, else one.

        Raises:
            RowError: the request is refused.
            RunError: nothing can be drawn any more.

        """

    async def figures(self) -> Figures:
        """What the models have done so far."""

    async def close(self) -> None:
        """Stop, and free what it holds."""
