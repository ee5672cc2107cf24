"""Plots as SVG text: bars with the range of the repetitions, and curves of quantiles. Pure.

Colours are classes (`g0`, `g1`, ...), which the page that holds the plots defines.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.histogram import Histogram
from benchmarks.results import Figure

WIDTH = 520
LABEL = 110
VALUE = 90
BAR = 18
GAP = 8

QUANTILES = (0.0, 0.5, 0.9, 0.99, 0.999)
"""The ticks of a curve's axis, evenly apart in nines."""
CURVE_HEIGHT = 220
MARGIN = 46


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    figure: Figure
    text: str
    colour: int
    invalid: bool = False


def bars(items: Sequence[Bar]) -> str:
    """A bar for each, from zero; a line shows from the lowest to the highest repetition."""
    highest = max((bar.figure.highest for bar in items), default=0.0) or 1.0
    room = WIDTH - LABEL - VALUE
    parts = []
    for number, bar in enumerate(items):
        top = number * (BAR + GAP)
        middle = top + BAR / 2
        low, mid, high = (
            LABEL + max(0.0, value) / highest * room
            for value in (bar.figure.lowest, bar.figure.median, bar.figure.highest)
        )
        faint = ' opacity="0.35"' if bar.invalid else ""
        parts.append(f'<text x="{LABEL - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.name)}</text>')
        parts.append(
            f'<rect class="g{bar.colour}" x="{LABEL}" y="{top}" width="{max(1.0, mid - LABEL):.1f}"'
            f' height="{BAR}"{faint}/>'
        )
        parts.append(f'<line class="range" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>')
        parts.append(f'<text x="{high + 6:.1f}" y="{middle + 4:.1f}">{escape(bar.text)}</text>')
    height = max(1, len(items) * (BAR + GAP) - GAP)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def curves(histograms: Mapping[str, Histogram], colours: Mapping[str, int]) -> str:
    """Durations by quantile: nines to the right, milliseconds upwards, both as logarithms."""
    points = {name: _points(histogram) for name, histogram in histograms.items() if len(histogram)}
    values = [value for line in points.values() for _, value in line]
    if not values:
        return ""
    lowest, highest = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    highest = max(highest, lowest + 1)
    width, height = WIDTH - MARGIN - 10, CURVE_HEIGHT - 40

    def across(share: float) -> float:
        return MARGIN + _nines(share) / _nines(QUANTILES[-1]) * width

    def up(value: float) -> float:
        return 10 + height - (math.log10(value) - lowest) / (highest - lowest) * height

    parts = []
    for power in range(lowest, highest + 1):
        y = up(10.0**power)
        parts.append(f'<line class="grid" x1="{MARGIN}" y1="{y:.1f}" x2="{MARGIN + width}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for share in QUANTILES:
        x = across(share)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="10" x2="{x:.1f}" y2="{10 + height}"/>')
        label = f"p{share * 100:g}" if share else "min"
        parts.append(f'<text x="{x:.1f}" y="{height + 28}" text-anchor="middle">{label}</text>')
    for name, line in points.items():
        path = " ".join(f"{across(share):.1f},{up(value):.1f}" for share, value in line)
        parts.append(f'<polyline class="l{colours[name]}" points="{path}"><title>{escape(name)}</title></polyline>')
    return f'<svg viewBox="0 0 {WIDTH} {CURVE_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _nines(share: float) -> float:
    return -math.log10(1 - share)


def _points(histogram: Histogram) -> list[tuple[float, float]]:
    """Shares and milliseconds, up to the last share that so many values can tell."""
    found = []
    for step in range(61):
        share = 1 - 10 ** (-step / 20)
        if share > QUANTILES[-1] + 1e-9 or len(histogram) * (1 - share) < 1:
            break
        value = histogram.quantile_ms(share)
        if value is not None:
            found.append((share, max(value, 0.001)))
    return found
