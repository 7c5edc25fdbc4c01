"""Charts as SVG text: axes, lines and points, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 14, 44
# Classes s0 to s7 of the style sheet; lines beyond them are dashed.
COLOURS = 8
# Pixels from one name to the next.
NAME_HEIGHT = 14
# Points of a line that a screen can tell apart.
MOST_POINTS = 400

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Values to pixels.

    Attributes:
        low, high: the range shown; positive on a logarithmic axis.
        start, end: its ends in pixels.
        whole: only whole numbers are labelled.
    """

    label: str
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    whole: bool = False

    @staticmethod
    def over(
        label: str,
        values: Sequence[float],
        vertical: bool,
        logarithmic: bool = False,
        room: float = 0.0,
        whole: bool = False,
    ) -> Axis:
        """The axis that shows all finite values (positive ones, if logarithmic).

        Args:
            room: left free at both ends, as a share of the range.
        """
        shown = [value for value in values if math.isfinite(value) and (value > 0 or not logarithmic)] or [1.0]
        low, high = min(shown), max(shown)
        if logarithmic:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
        else:
            alone = 0.5 if whole else abs(high) * 0.05 or 1.0
            free = room * (high - low) or (0.0 if high > low else alone)
            low, high = low - free, high + free
        ends = (HEIGHT - BOTTOM, TOP) if vertical else (LEFT, WIDTH - RIGHT)
        return Axis(label, low, high, *ends, logarithmic, whole)

    def place(self, value: float) -> float:
        """The pixel of a value; those outside lie on the edge."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values to label: powers of ten, or 1, 2 or 5 times one apart."""
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1, math.ceil((last - first) / 8) or 1)]
        step = max(round_step((self.high - self.low) / 5), 1.0 if self.whole else 0.0)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def chart(label: str, x: Axis, y: Axis, marks: list[str]) -> str:
    """A whole drawing: grid, axes, and marks on top. label: what a screen reader says."""
    grid = []
    for value in y.ticks():
        at = f"{y.place(value):.1f}"
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        grid.append(f'<text class="tick" text-anchor="end" x="{LEFT - 8}" y="{at}" dy="0.32em">{value:g}</text>')
    for value in x.ticks():
        at = f"{x.place(value):.1f}"
        grid.append(f'<text class="tick" text-anchor="middle" x="{at}" y="{HEIGHT - BOTTOM + 16}">{value:g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    labels = [
        f'<text class="axis" text-anchor="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">'
        f"{escape(x.label)}</text>",
        f'<text class="axis" text-anchor="middle" transform="translate(14 {middle}) rotate(-90)">'
        f"{escape(y.label)}</text>",
    ]
    inside = "\n".join([*grid, *labels, *marks])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">\n{inside}\n</svg>'
    )


def line(name: str, number: int, points: Points, x: Axis, y: Axis) -> str:
    """One curve in the colour of its number, its name shown on hovering; points that are no numbers are left out."""
    step = math.ceil(len(points) / MOST_POINTS) or 1
    shown = [*points[:-1:step], *points[-1:]]
    places = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in shown if math.isfinite(b))
    dash = ' stroke-dasharray="6 4"' if number >= COLOURS else ""
    return (
        f'<polyline class="line s{number % COLOURS}"{dash} points="{places}"><title>{escape(name)}</title></polyline>'
    )


def dots(places: dict[str, tuple[float, float]], numbers: dict[str, int], x: Axis, y: Axis) -> list[str]:
    """A dot and a name beside it for each place, names moved up or down where they would overlap."""
    ordered = sorted(places, key=lambda name: y.place(places[name][1]))
    heights = spaced([y.place(places[name][1]) for name in ordered], NAME_HEIGHT, HEIGHT - BOTTOM)
    return [dot(name, numbers[name], places[name], x, y, at) for name, at in zip(ordered, heights, strict=True)]


def dot(name: str, number: int, at: tuple[float, float], x: Axis, y: Axis, name_at: float) -> str:
    """One dot with its name on the side where there is room; name_at: the name's vertical pixel."""
    across, down = x.place(at[0]), y.place(at[1])
    right = across < (LEFT + WIDTH - RIGHT) / 2
    anchor, shift = ("start", 9) if right else ("end", -9)
    return (
        f'<circle class="dot s{number % COLOURS}" cx="{across:.1f}" cy="{down:.1f}" r="5">'
        f"<title>{escape(name)}: {at[0]:,.1f}, {at[1]:.4f}</title></circle>"
        f'<text class="name" text-anchor="{anchor}" x="{across + shift:.1f}" y="{name_at:.1f}" dy="0.32em">'
        f"{escape(name)}</text>"
    )


def spaced(places: list[float], gap: float, end: float) -> list[float]:
    """Ascending places moved as little as keeps neighbours a gap apart, down first, then up from the end."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    for i in reversed(range(len(moved))):
        moved[i], end = min(moved[i], end), min(moved[i], end) - gap
    return moved


def legend(names: dict[str, int]) -> str:
    """Colour and name of each series, by the number of its colour."""
    swatch = '<svg xmlns="http://www.w3.org/2000/svg" class="swatch" viewBox="0 0 22 8">{}</svg>'
    items = []
    for name, number in names.items():
        dash = ' stroke-dasharray="6 4"' if number >= COLOURS else ""
        stroke = f'<line class="line s{number % COLOURS}"{dash} x1="0" x2="22" y1="4" y2="4"/>'
        items.append(f"<li>{swatch.format(stroke)} {escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'
