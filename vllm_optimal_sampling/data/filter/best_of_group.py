"""The best row of each group, found in a pass of its own before rows are written.

Some 200 bytes of memory for each group.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any

from vllm_optimal_sampling.data.scores import scores_of_row
from vllm_optimal_sampling.selection import Scores, Selection

NO_SCORES = Scores(None, None, 0, None)


class BestOfGroup:
    """Remembers which row of each group is kept.

    Args:
        column: rows with the same value in it are a group; a row without a value is one of its own.
        selection: by what the kept row is chosen.
        seed: of the random choice of `resample`, which for a row depends on nothing but the seed, its group and its number.
    """

    def __init__(self, column: str, selection: Selection, seed: int) -> None:
        self.column, self.selection, self.seed = column, selection, seed
        self.has_scores = False
        self._best: dict[bytes, tuple[tuple[bool, float], int]] = {}
        self._kept: frozenset[int] | None = None

    def offer(self, row: Mapping[str, Any], number: int) -> None:
        """Take a row into account. Of rows that rank the same the first is kept."""
        value = row.get(self.column)
        group = json.dumps([value, number if value is None else None], sort_keys=True, default=str)
        key = hashlib.blake2b(group.encode(), digest_size=16).digest()
        scores = scores_of_row(row) or NO_SCORES
        self.has_scores |= self.selection.has_score(scores)
        rank = self.selection.rank(scores, random.Random(f"{self.seed} {group} {number}"))
        if key not in self._best or rank > self._best[key][0]:
            self._best[key] = (rank, number)

    def is_kept(self, number: int) -> bool:
        """Whether the row with this number is the one of its group; once all rows were offered."""
        if self._kept is None:
            self._kept = frozenset(best for _, best in self._best.values())
            self._best.clear()
        return number in self._kept
