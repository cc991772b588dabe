"""The report's charts, as SVG inside the page.

Drawn by hand: two kinds of chart come to a few kilobytes each, take their colours from the page's styles (light and
dark), and need no library. Their text is the page's text: it can be selected, searched and read out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from vllm_optimal_sampling.data.report.streaming import Distribution, Floats
from vllm_optimal_sampling.data.report.summary import Way

Format = Callable[[float], str]

LEFT, RIGHT, TOP, BOTTOM = 44, 12, 14, 40
"""Margins around the plot, in units of the picture: about a pixel each."""


def number(value: float) -> str:
    """A number as it is read: three significant digits, thousands apart."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def compact(value: float) -> str:
    """A count on an axis: 1.2k, 3M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share as per cent: 12 %, 0.3 %, < 0.01 %, > 99 %."""
    if math.isnan(share):
        return "–"
    if 0 < share < 1e-4:
        return "< 0.01 %"
    if 0.995 <= share < 1:
        return "> 99 %"
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


@dataclass(frozen=True)
class Plot:
    """The frame of a chart: where values are on the picture.

    Attributes:
        width, height: of the picture.
        low, high: the ends of the horizontal axis (logarithms to base 10 with `log_x`).
        top, bottom: the largest and the smallest value of the vertical axis.
        log_x, log_y: whether an axis is logarithmic; a vertical one shows counts from 1 on.
    """

    width: int
    height: int
    low: float
    high: float
    top: float
    log_x: bool = False
    log_y: bool = False
    bottom: float = 0.0

    def x(self, value: float) -> float:
        at = math.log10(value) if self.log_x else value
        share = (at - self.low) / (self.high - self.low)
        return LEFT + min(max(share, 0.0), 1.0) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        if self.log_y:
            # One count is a little above the axis, so that it is seen.
            share = (math.log10(value) + 0.3) / (math.log10(self.top) + 0.3) if value >= 1 else 0.0
        else:
            share = (value - self.bottom) / (self.top - self.bottom)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def axes(
        self,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_label: str,
        format_x: Format,
        format_y: Format | None = None,
    ) -> list[str]:
        floor = self.height - BOTTOM
        parts = []
        for tick in y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            said = escape((format_y or compact)(tick))
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{said}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{self.width - RIGHT}" y1="{floor}" y2="{floor}"/>')
        for tick in x_ticks:
            x = self.x(tick)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>')
            text = escape(format_x(tick))
            parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 17}" text-anchor="middle">{text}</text>')
        middle = (LEFT + self.width - RIGHT) / 2
        parts.append(
            f'<text class="label" x="{middle:.0f}" y="{self.height - 5}" text-anchor="middle">{escape(x_label)}</text>'
        )
        return parts


def svg(width: int, height: int, described: str, parts: Sequence[str], kind: str = "") -> Markup:
    return Markup(
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(described)}">'
        f"{''.join(parts)}</svg>"
    )


def histogram(
    figures: Distribution,
    x_label: str,
    *,
    view: tuple[float, float] | None = None,
    bars: int = 48,
    log_x: bool = False,
    log_y: bool = False,
    marker: float | None = None,
    whole: bool = False,
) -> Markup:
    """Bars over a distribution, with its median marked.

    Args:
        figures: what to draw; it has fine bins, which are put together to bars.
        view: the values shown; None: those that occur, to the 0.1 % at both ends. What is beyond is in the outer bars.
        bars: about how many.
        log_x: the distribution's bins are equal on a logarithmic axis, and so are the bars.
        log_y: logarithmic counts.
        marker: a value that a thin line is drawn at.
        whole: the values are whole numbers.
    """
    edges, counts = _bars(figures, view, bars)
    counts = counts.astype(float)
    at = np.log10(edges) if log_x else edges
    width, height = 420, 230
    top = float(counts.max(initial=1))
    plot = Plot(width, height, float(at[0]), float(at[-1]), top if log_y else top * 1.04, log_x, log_y)
    y_ticks = _decades(top) if log_y else [tick for tick in ticks(0, top, 4) if tick <= top * 1.04]
    x_ticks = _log_ticks(edges) if log_x else ticks(float(edges[0]), float(edges[-1]), 6, whole)
    parts = plot.axes(x_ticks, y_ticks, x_label, number)
    floor = height - BOTTOM
    total = counts.sum()
    for (low, high), count in zip(pairwise(edges.tolist()), counts.tolist(), strict=True):
        if not count:
            continue
        x, end, y = plot.x(low), plot.x(high), plot.y(count)
        gap = 0.8 if end - x > 3 else 0.0
        span = _span(low, high, whole)
        parts.append(
            f'<rect class="bar" x="{x:.2f}" y="{y:.2f}" width="{max(end - x - gap, 0.5):.2f}" height="{floor - y:.2f}">'
            f"<title>{escape(span)}: {count:,.0f} ({percent(count / total)})</title></rect>"
        )
    if marker is not None and edges[0] < marker < edges[-1]:
        parts.append(
            f'<line class="marker" x1="{plot.x(marker):.1f}" x2="{plot.x(marker):.1f}" y1="{TOP}" y2="{floor}"/>'
        )
    median = figures.quantiles[0.5]
    if not math.isnan(median) and (not log_x or median > 0):
        x = plot.x(median)
        anchor, shift = ("end", -5) if x > width * 0.66 else ("start", 5)
        parts.append(f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{floor}"/>')
        parts.append(
            f'<text class="note" x="{x + shift:.1f}" y="{TOP + 5}" text-anchor="{anchor}">median {number(median)}</text>'
        )
    described = (
        f"Histogram of {x_label}: {figures.count:,} values, median {number(median)}, "
        f"90 % between {number(figures.quantiles[0.05])} and {number(figures.quantiles[0.95])}."
    )
    return svg(width, height, described, parts)


def compared(groups: Sequence[tuple[str, str, Distribution]], x_label: str, bars: int = 44) -> Markup:
    """Outlines of several distributions over the same logarithmic bins, each as shares of its own count.

    Args:
        groups: name, class of its colour, and figures; all with the same edges.
        x_label: what is counted.
        bars: about how many steps an outline has.
    """
    edges = groups[0][2].edges
    together = sum(figures.counts for _, _, figures in groups)
    used = np.flatnonzero(together)
    first, last = int(used[0]), int(used[-1]) + 1
    starts = np.arange(first, last, max(1, round((last - first) / bars)))
    at = np.append(edges[starts], edges[last])
    shares = [np.add.reduceat(figures.counts[:last], starts) / figures.count for _, _, figures in groups]
    width, height = 420, 230
    top = max(float(share.max()) for share in shares)
    plot = Plot(width, height, math.log10(at[0]), math.log10(at[-1]), top * 1.04, log_x=True)
    parts = plot.axes(_log_ticks(at), [tick for tick in ticks(0, top, 4) if tick <= top], x_label, number, percent)
    floor = height - BOTTOM
    for (name, kind, figures), share in zip(groups, shares, strict=True):
        points = [f"{plot.x(at[0]):.1f},{floor}"]
        for (low, high), value in zip(pairwise(at.tolist()), share.tolist(), strict=True):
            points += [f"{plot.x(low):.1f},{plot.y(value):.1f}", f"{plot.x(high):.1f},{plot.y(value):.1f}"]
        points.append(f"{plot.x(at[-1]):.1f},{floor}")
        said = f"{name}: {figures.count:,} texts, median {number(figures.quantiles[0.5])}"
        parts.append(
            f'<polygon class="outline {kind}" points="{" ".join(points)}"><title>{escape(said)}</title></polygon>'
        )
    described = f"Shares of {x_label}: " + "; ".join(
        f"{name} {figures.count:,} texts, median {number(figures.quantiles[0.5])}" for name, _, figures in groups
    )
    return svg(width, height, described, parts)


def trade(ways: Sequence[Way], width: int) -> Markup:
    """A point for each way of sampling: how far it leads away from theta, and how often it is right.

    Args:
        ways: those with a share of right answers and a KL.
        width: of the picture; a narrow one is for telephones.
    """
    room = 16
    height = max(320, TOP + BOTTOM + room * (len(ways) + 1))
    lowest = min(way.interval[0] for way in ways)
    bottom = max(0.0, math.floor(lowest * 10) / 10 - (0.1 if lowest < 0.1 else 0))
    farthest = max(way.kl for way in ways)
    end = farthest * 1.5 if farthest > 0 else 1.0
    plot = Plot(width, height, 0, end, 1.0, bottom=bottom)
    y_ticks = [tick for tick in ticks(bottom, 1, 5) if tick <= 1]
    label = "KL(q*‖θ) a token (nats): how far from the student" if width > 500 else "KL(q*‖θ) a token (nats)"
    parts = plot.axes(ticks(0, end, 6 if width > 500 else 4), y_ticks, label, number, percent)
    free = float(TOP)  # labels go down the picture, each below the one before
    for way in sorted(ways, key=lambda way: -way.share):
        x, y = plot.x(way.kl), plot.y(way.share)
        low, high = way.interval
        said = (
            f"{way.name}: {percent(way.share)} of {way.num_judged:,} right (95 %: {percent(low)} to {percent(high)}), "
            f"{number(way.kl)} nats a token"
        )
        at = max(y + 4, free)
        free = at + room
        end_side = x > width * 0.6
        shift, anchor = (-10, "end") if end_side else (10, "start")
        parts.append(
            f'<line class="spread" x1="{x:.1f}" x2="{x:.1f}" y1="{plot.y(high):.1f}" y2="{plot.y(low):.1f}"/>'
            f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(said)}</title></circle>'
            f'<text class="note" x="{x + shift:.1f}" y="{at:.1f}" text-anchor="{anchor}">{escape(way.name)}</text>'
        )
    described = "Share of right answers against KL from theta a token: " + "; ".join(
        f"{way.name} {percent(way.share)} at {number(way.kl)} nats" for way in ways
    )
    return svg(width, height, described, parts, "wide" if width > 500 else "narrow")


def _bars(figures: Distribution, view: tuple[float, float] | None, bars: int) -> tuple[Floats, NDArray[np.int64]]:
    """Edges `[n + 1]` and counts `[n]`: fine bins put together, with all that is beyond the view in the outer ones."""
    edges, counts = figures.edges, figures.counts
    if view is not None:
        first = int(np.searchsorted(edges, view[0] + 1e-12, side="right")) - 1
        last = int(np.searchsorted(edges, view[1] - 1e-12, side="left"))
    else:
        cumulative = np.cumsum(counts)
        total = cumulative[-1] if len(cumulative) else 0
        first = int(np.searchsorted(cumulative, 0.001 * total, side="right"))
        last = int(np.searchsorted(cumulative, 0.999 * total, side="left")) + 1
    first, last = max(0, min(first, len(counts) - 1)), min(max(last, first + 1), len(counts))
    step = max(1, round((last - first) / bars))
    starts = np.arange(first, last, step)
    merged = np.add.reduceat(counts[first:last], starts - first)
    merged[0] += counts[:first].sum()
    stop = min(int(starts[-1]) + step, len(counts))
    merged[-1] += counts[last:].sum()
    return np.append(edges[starts], edges[stop]), merged


def _span(low: float, high: float, whole: bool) -> str:
    if whole:
        first, last = math.ceil(low), math.floor(high)
        return f"{first:,}" if first == last else f"{first:,} to {last:,}"
    return f"{number(low)} to {number(high)}"


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round values from low to high, some `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(top: float) -> list[float]:
    last = math.floor(math.log10(max(top, 1)))
    step = 1 if last <= 4 else 2
    return [10.0**power for power in range(0, last + 1, step)]


def _log_ticks(edges: Floats) -> list[float]:
    low, high = math.log10(edges[0]), math.log10(edges[-1])
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    step = max(1, math.ceil(len(powers) / 6))
    return [10.0**power for power in powers][::step]
