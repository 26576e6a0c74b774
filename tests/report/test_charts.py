"""Charts: binning against numpy, well-formed SVG, bars of the right height."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from vistill.report.charts import Series, bar_chart, bin_counts, interval_bar, legend, nice_ceiling


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
