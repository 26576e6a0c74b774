"""Small charts as inline SVG: no script, no font, no second file. Colours come from the page's CSS."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 40
SCALE = 400  # length of an interval bar


@dataclass(frozen=True)
class Series:
    """Heights of the bars of one kind; `css` is the class that colours them."""

    name: str
    css: str
    values: Sequence[float]


def bin_counts(values: Sequence[float], start: float, step: float, bins: int) -> list[int]:
    """How many values fall into [start + i * step, start + (i + 1) * step); the ends take all beyond."""
    counts = [0] * bins
    for value in values:
        counts[min(max(int((value - start) // step), 0), bins - 1)] += 1
    return counts


def bar_chart(
    labels: Sequence[str], series: Sequence[Series], *, x: str, y: str, percent: bool = False
) -> str:
    """Grouped bars with an axis, a few grid lines and a hover text on each bar.

    labels: one for each group, empty ones are not drawn. x and y: what the axes count.
    """
    top = nice_ceiling(max((max(s.values, default=0.0) for s in series), default=0.0))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    group = plot_width / max(len(labels), 1)
    bar = group * 0.84 / max(len(series), 1)
    unit = "%" if percent else ""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y} by {x}")}">',
        *(
            _grid_line(TOP + plot_height * (1 - share), f"{top * share:g}{unit}")
            for share in (0.0, 0.25, 0.5, 0.75, 1.0)
        ),
    ]
    for number, label in enumerate(labels):
        left = LEFT + number * group + group * 0.08
        for place, one in enumerate(series):
            height = plot_height * one.values[number] / top if top else 0.0
            hover = f"{one.name}: {one.values[number]:.4g}{unit}" + (f" at {label}" if label else "")
            parts.append(
                f'<rect class="{one.css}" x="{left + place * bar:.1f}" y="{TOP + plot_height - height:.1f}" '
                f'width="{max(bar - 1, 1):.1f}" height="{height:.1f}" rx="1.5">'
                f"<title>{escape(hover)}</title></rect>"
            )
        if label:
            parts.append(_text(left + group * 0.42, HEIGHT - BOTTOM + 15, label, "middle"))
    parts.append(_text(LEFT + plot_width / 2, HEIGHT - 6, x, "middle"))
    parts.append("</svg>")
    return "".join(parts)


def legend(series: Sequence[Series]) -> str:
    """Names of the series beside their colours."""
    names = (f'<span class="key"><i class="{s.css}"></i>{escape(s.name)}</span>' for s in series)
    return f'<p class="legend">{"".join(names)}</p>'


def interval_bar(value: float, low: float, high: float, full: float) -> str:
    """One row's value with its interval on a scale of 0 to `full`."""
    if full <= 0:
        return ""

    def place(number: float) -> float:
        return SCALE * min(max(number / full, 0.0), 1.0)

    return (
        f'<svg class="interval" viewBox="-5 0 {SCALE + 10} 12" aria-hidden="true">'
        f'<rect class="track" x="0" y="5" width="{SCALE}" height="2" rx="1"/>'
        f'<rect class="span" x="{place(low):.1f}" y="2" width="{max(place(high) - place(low), 1):.1f}" '
        'height="8" rx="3"/>'
        f'<circle class="model" cx="{place(value):.1f}" cy="6" r="3"/></svg>'
    )


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 4, 6, 8 times a power of ten that is at least `value`; 0 for 0."""
    if value <= 0:
        return 0.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(power * factor for factor in (1, 2, 4, 6, 8, 10) if power * factor >= value)


def _grid_line(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, label, "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
