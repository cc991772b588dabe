"""The report's picture of alpha along the sequence, as SVG."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vllm_optimal_sampling.data.report.charts import BOTTOM, LEFT, RIGHT, TOP, Plot, compact, number, svg, ticks
from vllm_optimal_sampling.data.report.summary import Band


def along_sequence(band: Band, width: int) -> Markup:
    """Alpha along the sequence: median and the band of 80 % of the tokens, above it how many tokens there are.

    Args:
        band: what to draw.
        width: of the picture; a narrow one is for telephones.
    """
    height, strip = 280, 46  # the strip below holds the counts
    end = max(1, len(band.counts) * band.width)
    plot = Plot(width, height - strip, 0, end, 1.0)
    floor, base, room = height - strip - BOTTOM, height - BOTTOM, strip + BOTTOM - 52
    parts = [*_alpha_levels(plot, width), *_spread(band, plot), *_counts(band, plot, base, room)]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{floor}" y2="{floor}"/>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{base}" y2="{base}"/>')
    most = max(1, int(band.counts.max(initial=0)))
    parts.append(
        f'<text class="tick" x="{LEFT - 6}" y="{base - room + 6:.0f}" text-anchor="end">{compact(most)}</text>'
    )
    parts.append(f'<text class="tick" x="{LEFT - 6}" y="{base}" text-anchor="end">0</text>')
    parts.extend(
        f'<text class="tick" x="{plot.x(tick):.1f}" y="{base + 16}" text-anchor="middle">{compact(tick)}</text>'
        for tick in ticks(0, end, 8 if width > 500 else 5, whole=True)
    )
    parts.append(
        f'<text class="label" x="{(LEFT + width - RIGHT) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        "position in the completion (tokens); bars: how many tokens are counted there</text>"
        if width > 500
        else f'<text class="label" x="{(LEFT + width - RIGHT) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        "position (tokens); bars: tokens counted</text>"
    )
    return svg(width, height, _described(band, end), parts, "wide" if width > 500 else "narrow")


def _alpha_levels(plot: Plot, width: int) -> Iterator[str]:
    """Lines across the picture at values of alpha."""
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = plot.y(tick)
        kind = "marker" if tick == 0.5 else "grid"
        yield f'<line class="{kind}" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'


def _spread(band: Band, plot: Plot) -> Iterator[str]:
    """The median and the band around it, interrupted where there is no token."""
    centres = [(stretch + 0.5) * band.width for stretch in range(len(band.counts))]
    for run in _runs(band.counts):
        upper = [f"{plot.x(centres[i]):.1f},{plot.y(band.high[i]):.1f}" for i in run]
        lower = [f"{plot.x(centres[i]):.1f},{plot.y(band.low[i]):.1f}" for i in reversed(run)]
        middle = [f"{plot.x(centres[i]):.1f},{plot.y(band.median[i]):.1f}" for i in run]
        yield f'<polygon class="band" points="{" ".join(upper + lower)}"/>'
        yield f'<polyline class="line" points="{" ".join(middle)}"/>'


def _counts(band: Band, plot: Plot, base: int, room: int) -> Iterator[str]:
    """A bar for each stretch's tokens, on `base` and at most `room` tall; what is above it tells its values if pointed at."""
    most = max(1, int(band.counts.max(initial=0)))
    for i, count in enumerate(band.counts.tolist()):
        x, stop = plot.x(i * band.width), plot.x((i + 1) * band.width)
        tall = room * count / most
        first, last = i * band.width + 1, (i + 1) * band.width
        place = f"token {first:,}" if first == last else f"tokens {first:,} to {last:,}"
        yield (
            f'<rect class="count" x="{x:.2f}" y="{base - tall:.2f}" width="{max(stop - x - 0.6, 0.5):.2f}" '
            f'height="{tall:.2f}"/>'
            f'<rect class="reach" x="{x:.2f}" y="{TOP}" width="{stop - x:.2f}" height="{base - TOP}">'
            f"<title>{place}: median {number(band.median[i])}, 80 % between {number(band.low[i])} and "
            f"{number(band.high[i])}, {count:,} values</title></rect>"
        )


def _described(band: Band, end: int) -> str:
    """The picture in words, for those who do not see it."""
    ends = [i for i, count in enumerate(band.counts) if count]
    if not ends:
        return "Alpha along the sequence"
    return (
        f"Alpha along the sequence: the median is {number(band.median[ends[0]])} at the first tokens and "
        f"{number(band.median[ends[-1]])} at the last of {end:,}."
    )


def _runs(counts: NDArray[np.int64]) -> list[list[int]]:
    """The stretches with a token, in runs without a gap."""
    runs: list[list[int]] = []
    for i in np.flatnonzero(counts).tolist():
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs
