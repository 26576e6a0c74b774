"""Charts: binning against numpy, well-formed SVG, bars of the right height."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vistill.report.charts import (
    Line,
    Series,
    bar_chart,
    bin_counts,
    interval_bar,
    legend,
    line_chart,
    nice_ceiling,
    ticks,
)


def test_bin_counts_equal_numpy_inside_and_clip_outside() -> None:
    values = np.random.default_rng(0).normal(50, 40, 500).tolist()
    expected, _ = np.histogram(np.clip(values, 0, 99.999), bins=10, range=(0, 100))
    assert bin_counts(values, 0, 10, 10) == expected.tolist()
    assert bin_counts([], 0, 1, 3) == [0, 0, 0]


@pytest.mark.parametrize(
    ("value", "ceiling"), [(0, 0), (1, 1), (7, 8), (8.01, 10), (61, 80), (0.13, 0.2), (350, 400)]
)
def test_nice_ceiling(value: float, ceiling: float) -> None:
    assert nice_ceiling(value) == pytest.approx(ceiling)


def bars(svg: str, css: str) -> list[ElementTree.Element]:
    tree = ElementTree.fromstring(svg)
    return [element for element in tree.iter("rect") if element.get("class") == css]


def test_bar_heights_are_in_proportion_and_text_is_escaped() -> None:
    series = [Series("a<b", "model", [1, 2, 4]), Series("people", "human", [4, 0, 2])]
    svg = bar_chart(["x", "", "z&"], series, x="<len>", y="captions")
    heights = [float(bar.get("height", "")) for bar in bars(svg, "model")]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.11)
    assert heights[2] == pytest.approx(4 * heights[0], abs=0.21)
    assert float(bars(svg, "human")[1].get("height", "")) == 0
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert {"x", "z&", "<len>"} <= set(texts)
    assert "a<b: 1 at x" in [element.text for element in ElementTree.fromstring(svg).iter("title")]


def test_a_chart_of_nothing_is_still_a_chart() -> None:
    assert bars(bar_chart([], [Series("a", "model", [])], x="x", y="y"), "model") == []
    svg = bar_chart(["0"], [Series("a", "model", [0])], x="x", y="y")
    assert float(bars(svg, "model")[0].get("height", "")) == 0


def test_interval_bar_spans_low_to_high() -> None:
    svg = interval_bar(50, 40, 60, 100)
    span = bars(svg, "span")[0]
    assert (float(span.get("x", "")), float(span.get("width", ""))) == (160, 80)
    assert re.search(r'cx="200.0"', svg)
    assert interval_bar(1, 1, 1, 0) == ""


def test_legend_escapes() -> None:
    assert "&lt;i&gt;" in legend([Series("<i>", "model", [])])


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = ElementTree.fromstring(svg).iter("polyline")
    return [
        [(float(a), float(b)) for a, _, b in (pair.partition(",") for pair in line.get("points", "").split())]
        for line in lines
    ]


def test_a_line_stands_where_its_values_say() -> None:
    line = Line("a<b", "c0", [0, 50, 100], [0.0, 1.0, 4.0])
    svg = line_chart([line], x="step", y="loss", mark=50)
    (found,) = points(svg)
    (left, bottom), (middle, low), (right, top) = found
    assert middle - left == pytest.approx(right - middle, abs=0.11)
    assert bottom - low == pytest.approx((bottom - top) / 4, abs=0.11)
    assert re.search(rf'class="mark" x1="{middle}"', svg)
    titles = [element.text for element in ElementTree.fromstring(svg).iter("title")]
    assert titles == ["a<b", "a<b: 0 at 0", "a<b: 1 at 50", "a<b: 4 at 100"]


def test_a_wider_span_moves_a_line_together() -> None:
    line = Line("a", "c0", [50, 100], [1.0, 2.0])
    narrow, wide = (points(line_chart([line], x="x", y="y", span=s))[0] for s in (None, (0, 100)))
    assert narrow[-1] == wide[-1]
    assert wide[0][0] == pytest.approx((narrow[0][0] + narrow[1][0]) / 2, abs=0.11)


def test_points_that_are_no_number_are_left_out_and_nothing_is_still_a_chart() -> None:
    line = Line("a", "c0", [0, 1, 2], [1.0, float("nan"), float("inf")])
    assert len(points(line_chart([line], x="x", y="y"))[0]) == 1
    for lines in ([], [Line("a", "c0", [], [])], [Line("a", "c0", [5], [0.0])]):
        assert "nan" not in line_chart(lines, x="x", y="y", mark=5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 50, 100]),
        (3.2, 3.7, [3.2, 3.4, 3.6, 3.8]),
        (-0.2, 0, [-0.2, -0.15, -0.1, -0.05, 0]),
        (0, 6e-4, [0, 2e-4, 4e-4, 6e-4]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_ticks_of_one_value_stand_around_it(value: float) -> None:
    found = ticks(value, value)
    assert found[0] < value < found[-1]


def test_small_and_large_ticks_are_short() -> None:
    svg = line_chart([Line("a", "c0", [0, 300_000], [0, 6e-4])], x="x", y="y")
    texts = {element.text for element in ElementTree.fromstring(svg).iter("text")}
    assert {"2e-4", "6e-4", "0", "1e5", "3e5"} <= texts
