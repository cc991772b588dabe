"""The colours of tokens: a scale from theta to the teacher for alpha, one from calm to loud for the divergence.

Every step is a background for the page's text, so every step keeps the contrast that WCAG asks of text (4.5 to 1); a
test holds them to it.
"""

from __future__ import annotations

STEPS = 11
"""Of each scale: `a0` (theta alone) to `a10` (the teacher alone), `k0` to `k10`."""

TEXT = {"light": "#1b1f27", "dark": "#e9ecf2"}
ALPHA = {"light": ("#ffb46b", "#f3f3f1", "#85bdff"), "dark": ("#8a4a07", "#2a2e37", "#1a56a6")}
KL = {"light": ("#f5f4f6", "#f0b9d9", "#e58fc6"), "dark": ("#2a2d36", "#6d2c5a", "#a02a78")}


def scale(stops: tuple[str, ...]) -> list[str]:
    """`STEPS` colours from the first stop to the last, even between neighbouring stops."""
    colours = []
    for step in range(STEPS):
        place = step / (STEPS - 1) * (len(stops) - 1)
        index = min(int(place), len(stops) - 2)
        share = place - index
        low, high = _rgb(stops[index]), _rgb(stops[index + 1])
        colours.append("#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(low, high, strict=True)))
    return colours


def contrast(first: str, second: str) -> float:
    """The contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    darker, lighter = sorted((_luminance(first), _luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def variables(theme: str) -> str:
    """The scales as CSS variables: `--a0` to `--a10`, `--k0` to `--k10`."""
    named = [("a", ALPHA[theme]), ("k", KL[theme])]
    return " ".join(f"--{name}{i}: {colour};" for name, stops in named for i, colour in enumerate(scale(stops)))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _luminance(colour: str) -> float:
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in _rgb(colour))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
