"""Small charts as inline SVG: no script, no font, no second file. Colours come from the page's CSS."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 40
SCALE = 400  # length of an interval bar
DOTTED = 30  # points of a line, up to which each is shown


@dataclass(frozen=True)
class Series:
    """Heights of the bars of one kind; `css` is the class that colours them."""

    name: str
    css: str
    values: Sequence[float]


@dataclass(frozen=True)
class Line:
    """Points of one line; `css` is the class that colours it. A faint one stands behind another."""

    name: str
    css: str
    xs: Sequence[float]
    ys: Sequence[float]
    faint: bool = False


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


def line_chart(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    mark: float | None = None,
    span: tuple[float, float] | None = None,
) -> str:
    """Lines over a common axis; a hover text names each, and where there are few points it tells each.

    mark: an x at which a vertical line stands. span: ends of the x axis, else those of the points. The y axis
    need not begin at 0. Points that are no finite number are left out.
    """
    points = [
        [(a, b) for a, b in zip(line.xs, line.ys, strict=True) if math.isfinite(a) and math.isfinite(b)]
        for line in lines
    ]
    flat = [point for some in points for point in some]
    start, end = span or (min((a for a, _ in flat), default=0.0), max((a for a, _ in flat), default=1.0))
    start, end = (start, end) if end > start else (start - 1, start + 1)
    across = [tick for tick in ticks(start, end) if start <= tick <= end]
    up = ticks(min((b for _, b in flat), default=0), max((b for _, b in flat), default=1))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(a: float, b: float) -> tuple[float, float]:
        return LEFT + width * (a - start) / (end - start), TOP + height * (1 - (b - up[0]) / (up[-1] - up[0]))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y} by {x}")}">']
    parts += [_grid_line(place(start, tick)[1], _label(tick)) for tick in up]
    for tick in across:
        left = place(tick, 0)[0]
        anchor = "end" if left > WIDTH - 2 * RIGHT else "middle"
        parts.append(_text(left, HEIGHT - BOTTOM + 15, _label(tick), anchor))
    if mark is not None and flat:
        left = place(mark, 0)[0]
        parts.append(f'<line class="mark" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP}" y2="{TOP + height}"/>')
    for line, some in zip(lines, points, strict=True):
        where = [place(a, b) for a, b in some]
        css = f"curve {line.css}{' faint' if line.faint else ''}"
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in where)
        parts.append(f'<polyline class="{css}" points="{path}"><title>{escape(line.name)}</title></polyline>')
        if len(where) <= DOTTED and not line.faint:
            for (a, b), (step, value) in zip(where, some, strict=True):
                hover = escape(f"{line.name}: {value:.4g} at {step:g}")
                at = f'cx="{a:.1f}" cy="{b:.1f}" r="3"'
                parts.append(f'<circle class="dot {line.css}" {at}><title>{hover}</title></circle>')
    parts.append(_text(LEFT + width / 2, HEIGHT - 6, x, "middle"))
    parts.append("</svg>")
    return "".join(parts)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` steps of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`."""
    if not high > low:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def legend(series: Sequence[Series | Line]) -> str:
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


def _label(value: float) -> str:
    """A tick in few characters: 2000, 0.05, 6e-4, 2e5."""
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:g}"
    mantissa, _, power = f"{value:.6e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def _grid_line(y: float, label: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 6, y + 4, label, "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
