"""The row audit where an engine's ranks are processes of their own: every rank keeps the rows that passed its processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm import LLM

from support.reference_models import Reference
from support.row_audit import AuditedRows, Report, RowAudit, Vocabularies


def listen(worker: Any) -> None:
    """Begin, in a worker."""
    worker.row_audit = RowAudit(runner=worker.model_runner)
    worker.row_audit.__enter__()


def stop(worker: Any) -> list[Any]:
    """End, in a worker; what was kept, and how far it may be off there."""
    audit: RowAudit = worker.row_audit
    audit.__exit__()
    del worker.row_audit
    return [audit.rows, audit.tolerances]  # no tuple, whose types vLLM does not send along


class RankAudit:
    """As `RowAudit`, for all ranks of an engine. It has to take functions for its workers
    (VLLM_ALLOW_INSECURE_SERIALIZATION=1)."""

    def __init__(self, llm: LLM):
        self.llm = llm
        self.of_ranks: list[Any] = []

    def __enter__(self) -> RankAudit:
        self.llm.collective_rpc(listen)
        return self

    def __exit__(self, *_: object) -> None:
        self.of_ranks = self.llm.collective_rpc(stop)

    def check(
        self,
        reference: Reference,
        theta_prompts: dict[str, Sequence[int] | None],
        vocabularies: Vocabularies | None = None,
    ) -> Report:
        """Check the rows of the first rank against float64, and those of the others against the first rank's, bit by bit.

        Every rank draws by itself: where rows or seeds differ, so do the texts.
        """
        (first, tolerances), *others = self.of_ranks
        for rows, _ in others:
            assert len(rows) == len(first)
            for mine, theirs in zip(rows, first, strict=True):
                assert (mine.request, mine.tokens, mine.settings) == (theirs.request, theirs.tokens, theirs.settings)
                assert torch.equal(mine.after, theirs.after) and torch.equal(mine.before, theirs.before)
        return AuditedRows(first, tolerances).check(reference, theta_prompts, vocabularies)
