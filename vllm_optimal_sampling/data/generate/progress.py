"""How far a run is: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass
class Figures:
    """What the models did so far, from the engine's own metrics; sums, so that two moments can be subtracted."""

    alpha_sum: float = 0.0
    alpha_count: float = 0.0
    drafted: float = 0.0
    accepted: float = 0.0
    tokens: float = 0.0
    """Drawn, those of unfinished samples included."""

    def __sub__(self, earlier: Figures) -> Figures:
        return Figures(
            self.alpha_sum - earlier.alpha_sum,
            self.alpha_count - earlier.alpha_count,
            self.drafted - earlier.drafted,
            self.accepted - earlier.accepted,
            self.tokens - earlier.tokens,
        )

    def __add__(self, other: Figures) -> Figures:
        return self - (Figures() - other)

    def in_words(self) -> list[str]:
        """Mean alpha and acceptance, as far as they are known."""
        words = []
        if self.alpha_count > 0:
            words.append(f"alpha {self.alpha_sum / self.alpha_count:.2f}")
        if self.drafted > 0:
            words.append(f"{self.accepted / self.drafted:.0%} of drafts accepted")
        return words


class Progress:
    """Counts rows and tokens, and shows them now and then.

    Args:
        interval: seconds between lines where there is no terminal.
        stream: where to.
        num_samples: of each row.

    """

    def __init__(self, interval: float, stream: TextIO = sys.stderr, num_samples: int = 1) -> None:
        self.interval, self.stream, self.num_samples = interval, stream, num_samples
        self.rows = self.failed = self.samples = self.tokens = self.in_flight = 0
        self.total: int | None = None
        """Rows of the input that this run looks at; None while unknown."""
        self.skipped = 0
        """Of them, rows that were finished before it."""
        self.figures = Figures()
        self._start = self._shown = time.monotonic()
        self._bar: Any = None
        if stream.isatty():
            from tqdm import tqdm

            # Without tqdm's own time left, which knows nothing of what is in flight.
            self._bar = tqdm(
                unit="row",
                file=stream,
                dynamic_ncols=True,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            )

    @property
    def seconds(self) -> float:
        """Since the first row was given to the models."""
        return max(time.monotonic() - self._start, 1e-9)

    def begin(self) -> None:
        """Count time from now: the engine is up."""
        self._start = time.monotonic()
        if self._bar is not None:
            self._bar.unpause()

    def row_skipped(self) -> None:
        """A row of the input was finished before this run."""
        self.skipped += 1

    def row_done(self, failed: bool) -> None:
        """A row of the input is finished, with all its samples."""
        self.rows += 1
        self.failed += failed

    def sample_done(self, num_tokens: int) -> None:
        """A sample is drawn."""
        self.samples += 1
        self.tokens += num_tokens

    def is_due(self) -> bool:
        """Whether it is time to show something."""
        return time.monotonic() - self._shown >= (0.5 if self._bar is not None else self.interval)

    def show(self) -> None:
        """Show it now."""
        self._shown = time.monotonic()
        if self._bar is not None:
            self._bar.total = None if self.total is None else max(self.total - self.skipped, self.rows)
            self._bar.set_postfix_str(", ".join([*self._words(), *self._left()]), refresh=False)
            self._bar.update(self.rows - self._bar.n)
            self._bar.refresh()
        else:
            self.say(", ".join([self._of_total(), *self._words(), *self._left()]))

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Show where it ended."""
        self.show()
        if self._bar is not None:
            self._bar.close()

    def _of_total(self) -> str:
        if self.total is None:
            return f"{self.rows} rows"
        left = max(self.total - self.skipped, self.rows)
        return f"{self.rows} of {left} rows" + (f" ({self.rows / left:.0%})" if left else "")

    @property
    def _tokens(self) -> float:
        """Tokens drawn so far, as far as they are known."""
        return max(self.tokens, self.figures.tokens)

    def _words(self) -> list[str]:
        words = [f"{self._tokens / self.seconds:.1f} tok/s", *self.figures.in_words(), f"{self.failed} failed"]
        return [*words, f"{self.in_flight} in flight"] if self.in_flight else words

    def _left(self) -> list[str]:
        """The time left, from the tokens that are left if the samples to come are as long as the finished ones."""
        if self.total is None or not self.rows:
            return []
        samples = max(self.total - self.skipped - self.rows, 0) * self.num_samples
        if samples and samples <= self.in_flight:
            return ["nothing left to begin"]  # the longest are left: how long they get is not known
        if samples and not self.samples:
            return []
        tokens = samples * self.tokens / max(self.samples, 1) - (self._tokens - self.tokens)
        seconds = int(max(tokens, 0) * self.seconds / max(self._tokens, 1))
        return [f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"]
