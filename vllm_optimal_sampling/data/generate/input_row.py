"""A row of the input, and where rows come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class InputRow:
    """A row of the input, or the place of one that cannot be read."""

    source: str
    """The file, by its name in the input; or the data set."""
    line: int
    """In text files the line that the row begins on, else its number; from 1."""
    columns: Mapping[str, Any] | None
    """None where the row cannot be read."""
    error: str | None = None
    """Why it cannot."""
    unit: str = "line"

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"{self.source} {self.unit} {self.line}"

    @property
    def position(self) -> str:
        """The same as an id, the same in every run over the same input."""
        return f"{self.source}:{self.line}"


class Source(Protocol):
    """One file or data set."""

    name: str

    def rows(self) -> Iterator[InputRow]:
        """Its rows in their order."""

    def count(self) -> int | None:
        """How many there are, None where only reading all of them would tell."""
