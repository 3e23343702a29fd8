"""Charts: where the ink is, what is said to a screen reader, and what long runs are thinned to."""

import itertools
import json
import math
import re
from html import unescape
from xml.etree import ElementTree

import pytest

from mathrl.evaluation.statistics import Interval
from mathrl.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    IntervalRow,
    Point,
    Series,
    interval_rows,
    line_chart,
    share_bars,
    stacked_chart,
    ticks,
)
from mathrl.report.pages import number, percent


def svg_of(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", html, re.DOTALL)[0])


def points_of(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, p.split())) for p in element.get("d").strip("MZ").split("L")]


def with_class(svg: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [e for e in svg if name in (e.get("class") or "").split()]


def test_a_line_goes_from_corner_to_corner() -> None:
    html = line_chart("T", [Series("s", [1, 2, 3], [0.0, 0.5, 1.0])], y_range=(0.0, 1.0))
    (line,) = with_class(svg_of(html), "line")
    (x0, y0), (x1, y1), (x2, y2) = points_of(line)
    assert (x0, x2) == (LEFT, WIDTH - RIGHT)
    assert (y0, y2) == (HEIGHT - BOTTOM, TOP)
    assert (x1, y1) == (pytest.approx((x0 + x2) / 2), pytest.approx((y0 + y2) / 2))


def test_a_gap_is_not_bridged_and_a_lone_value_is_seen() -> None:
    y = [1.0, 2.0, math.nan, 3.0, math.nan, 1.0, 2.0]
    svg = svg_of(line_chart("T", [Series("s", range(7), y)]))
    assert [len(points_of(e)) for e in with_class(svg, "line")] == [2, 2]
    assert len(with_class(svg, "dot")) == 1


def test_a_band_has_both_edges() -> None:
    svg = svg_of(line_chart("T", [Series("s", [0, 1], [1, 2], [0, 1], [2, 3])]))
    assert len(points_of(with_class(svg, "band")[0])) == 4


def test_stacked_layers_lie_on_each_other() -> None:
    html = stacked_chart("T", [0, 1], [("a", [0.25, 0.25], ""), ("b", [0.75, 0.5], "")], top=1.0)
    lower, upper = (points_of(e) for e in with_class(svg_of(html), "area"))
    assert upper[2:][::-1] == lower[:2]  # b's floor is a's ceiling
    assert upper[0][1] == TOP  # 0.25 + 0.75 fills the chart


def test_long_runs_are_means_and_say_so() -> None:
    n = 5 * MAX_POINTS
    html = line_chart("T", [Series("s", range(n), [i % 5 for i in range(n)])])
    (line,) = with_class(svg_of(html), "line")
    assert len(points_of(line)) == MAX_POINTS
    assert len({y for _, y in points_of(line)}) == 1  # every mean is 2
    assert "mean of 5 steps" in html


def test_the_cursor_has_the_numbers_and_the_reader_hears_them() -> None:
    html = line_chart("Reward <b>", [Series('a"b', [1, 2], [0.1, 0.25])], show=percent)
    data = json.loads(unescape(re.search(r'data-chart="([^"]*)"', html)[1]))
    assert data["series"] == [['a"b', [1, 2], ["10.0\u202f%", "25.0\u202f%"]]]
    assert svg_of(html).get("aria-label") == 'Reward <b>. a"b from 10.0\u202f% to 25.0\u202f%'
    assert "<b>" not in html


def test_empty_charts_are_left_out() -> None:
    assert line_chart("T", [Series("s", [], [])]) == ""
    assert line_chart("T", [Series("s", [1], [math.nan])]) == ""
    assert stacked_chart("T", [], [("a", [], "")]) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.07), (-3, 8), (812, 955), (0, 1e-6), (0.19, 0.22)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert 3 <= len(marks) <= 8
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in marks)
    steps = {round(b - a, 12) for a, b in itertools.pairwise(marks)}
    assert len(steps) == 1
    leading = steps.pop() / 10 ** math.floor(math.log10(high - low))
    assert any(math.isclose(leading * 10**i, m) for i in range(3) for m in (1, 2, 2.5, 5, 10, 20))


def test_intervals_stand_where_their_values_are() -> None:
    rows = [IntervalRow("held out", "n = 9", [Point("after", 0.5, Interval(0.25, 0.75), "after")])]
    html = interval_rows(rows, caption="accuracy")
    assert "left:25.00%;width:50.00%" in html
    assert 'class="mean after" style="left:50.00%"' in html
    assert "after 50.0\u202f%, 95 % interval 25.0\u202f% to 75.0\u202f%" in html


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.1234, "0.123"), (12.345, "12.3"), (1234.5, "1,234"), (2e-5, "2e-05"), (math.nan, "–")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_shares_fill_their_bar() -> None:
    parts = [("right", 0.25, "correct"), ("never", 0.0, "error"), ("wr<ong", 0.75, "wrong")]
    html = share_bars("Verdicts", [("greedy", parts)])
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", html)]
    assert widths == [25.0, 75.0]
    assert "greedy: right 25.0\u202f%, wr&lt;ong 75.0\u202f%" in html
    assert "never" not in html


def test_a_difference_stands_around_zero() -> None:
    rows = [IntervalRow("set", "", [Point("difference", 0.1, Interval(-0.1, 0.3), "after")], "+10.0 points")]
    html = interval_rows(rows, caption="c", low=-0.4, high=0.4, signed=True)
    assert 'class="grid zero" style="left:50.00%"' in html
    assert 'class="mean after" style="left:62.50%"' in html
    assert "+20\u202f%" in html
