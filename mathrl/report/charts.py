"""Charts as inline SVG and HTML: no library, no network, readable without JavaScript.

Colours are CSS classes (``c0`` … ``c7``, or a word such as ``before``), so that light and dark follow the
reader's setting. Each chart carries its numbers in ``data-chart``, which the page's script shows at a cursor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from mathrl.evaluation.statistics import Interval
from mathrl.report.pages import axis_percent, number, percent

WIDTH, HEIGHT = 400, 216  # viewBox; shown at about this size, so that text keeps its size on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 26
MAX_POINTS = 400

Number = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """A named curve. NaN values leave a gap; ``low`` and ``high`` draw a band."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: str = ""
    dots: bool = False


@dataclass(frozen=True)
class Point:
    """A value with its interval in an interval row."""

    name: str
    value: float
    ci95: Interval
    colour: str


@dataclass(frozen=True)
class IntervalRow:
    """A label, and the points drawn below each other on one axis."""

    label: str
    note: str
    points: Sequence[Point]
    told: str = ""


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About ``wanted`` round numbers (1, 2, 2.5, 5 · 10^n apart) inside [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / wanted))
    steps = [m * power for m in (1, 2, 2.5, 5, 10, 20)]
    step = min(steps, key=lambda size: abs(span / size - wanted))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _tick_number(value: float) -> str:
    return f"{value:,.10g}" if abs(value) < 1e6 else f"{value:.3g}"


def thin(series: Series) -> tuple[Series, int]:
    """At most MAX_POINTS points, each the mean of as many neighbours; (series, neighbours a point)."""
    size = math.ceil(len(series.x) / MAX_POINTS)
    if size <= 1:
        return series, 1

    def means(values: Sequence[float]) -> list[float]:
        parts = (values[i : i + size] for i in range(0, len(values), size))
        kept = ([v for v in part if math.isfinite(v)] for part in parts)
        return [sum(part) / len(part) if part else math.nan for part in kept]

    y, low, high = means(series.y), means(series.low), means(series.high)
    return Series(series.name, means(series.x), y, low, high, series.colour, series.dots), size


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    y_range: tuple[float | None, float | None] = (None, None),
    show: Number = number,
    x_label: str = "step",
    log_x: bool = False,
) -> Markup:
    """A figure with curves over a common x axis; ``y_range`` fixes an end of the y axis where not None."""
    thinned = [thin(s) for s in series]
    curves = [s for s, _ in thinned]
    size = max((n for _, n in thinned), default=1)
    values = [v for s in curves for part in (s.y, s.low, s.high) for v in part if math.isfinite(v)]
    xs = [v for s in curves for v in s.x]
    if not values:
        return Markup("")
    frame = _Frame(
        (min(xs), max(xs)),
        _padded(min(values), max(values), y_range),
        log_x,
        axis_percent if show is percent else _tick_number,
    )
    drawn = []
    for i, s in enumerate(curves):
        colour = s.colour or f"c{i}"
        if len(s.low):
            edge = [(frame.x(a), frame.y(b)) for a, b in zip(s.x, s.high, strict=True) if math.isfinite(b)]
            back = [(frame.x(a), frame.y(b)) for a, b in zip(s.x, s.low, strict=True) if math.isfinite(b)]
            drawn.append(f'<path class="band {colour}" d="{_path(edge + back[::-1])}Z"/>')
        for run in _runs(s):
            points = [(frame.x(a), frame.y(b)) for a, b in run]
            if len(points) > 1:
                drawn.append(f'<path class="line {colour}" d="{_path(points)}"/>')
            if s.dots or len(points) == 1:
                drawn += [
                    f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points
                ]
    note = " ".join(filter(None, [note, f"Each point is the mean of {size} steps." if size > 1 else ""]))
    return _figure(title, frame, curves, "".join(drawn), note, show, x_label)


def stacked_chart(
    title: str,
    x: Sequence[float],
    layers: Sequence[tuple[str, Sequence[float], str]],
    *,
    note: str = "",
    top: float | None = None,
    show: Number = number,
) -> Markup:
    """Stacked areas. ``layers``: (name, values over x, colour class or ""), the first at the bottom."""
    curves = [thin(Series(name, x, values, colour=colour))[0] for name, values, colour in layers]
    if not curves or not len(curves[0].x):
        return Markup("")
    places = curves[0].x
    base = [0.0] * len(places)
    stacks = []
    for s in curves:
        above = [b + (v if math.isfinite(v) else 0.0) for b, v in zip(base, s.y, strict=True)]
        stacks.append((base, above))
        base = above
    frame = _Frame(
        (min(places), max(places)),
        (0.0, top if top is not None else max(max(base), 1e-9) * 1.04),
        False,
        axis_percent if show is percent else _tick_number,
    )
    if len(places) == 1:  # one step: a bar, not an area without width
        frame = _Frame((places[0] - 0.5, places[0] + 0.5), frame.y_range, False, frame.show)
        places, stacks = [places[0] - 0.4, places[0] + 0.4], [(b * 2, a * 2) for b, a in stacks]
    drawn = []
    for i, (s, (below, above)) in enumerate(zip(curves, stacks, strict=True)):
        edge = [(frame.x(a), frame.y(b)) for a, b in zip(places, above, strict=True)]
        back = [(frame.x(a), frame.y(b)) for a, b in zip(places, below, strict=True)]
        drawn.append(f'<path class="area {s.colour or f"c{i}"}" d="{_path(edge + back[::-1])}Z"/>')
    return _figure(title, frame, curves, "".join(drawn), note, show, "step")


def interval_rows(
    rows: Sequence[IntervalRow], *, caption: str, low: float = 0.0, high: float = 1.0, signed: bool = False
) -> Markup:
    """Values with their intervals on one horizontal axis, a row each; plain HTML, as wide as the page.

    ``signed``: the values are differences; 0 is marked, and the axis says + and −.
    """

    def place(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    marks = ticks(low, high, 4)
    grid = "".join(
        f'<i class="grid{" zero" if signed and t == 0 else ""}" style="left:{place(t):.2f}%"></i>'
        for t in marks
    )
    out = []
    for row in rows:
        lanes = "".join(
            f'<span class="lane"><i class="ci {p.colour}" style="left:{place(p.ci95.low):.2f}%;'
            f'width:{place(p.ci95.high) - place(p.ci95.low):.2f}%"></i>'
            f'<i class="mean {p.colour}" style="left:{place(p.value):.2f}%"></i></span>'
            for p in row.points
        )
        told = row.told or " → ".join(percent(p.value) for p in row.points)
        spoken = "; ".join(
            f"{p.name} {percent(p.value)}, 95 % interval {percent(p.ci95.low)} to {percent(p.ci95.high)}"
            for p in row.points
        )
        label = f'<span class="label">{escape(row.label)} <small>{escape(row.note)}</small></span>'
        out.append(
            f'<div class="row" role="listitem" aria-label="{escape(row.label)}: {escape(spoken)}" '
            f'title="{escape(spoken)}">{label}<span class="track">{grid}{lanes}</span>'
            f'<span class="told">{escape(told)}</span></div>'
        )
    axis = "".join(
        f'<span style="left:{place(t):.2f}%">{"+" if signed and t > 0 else ""}{axis_percent(t)}</span>'
        for t in marks
    )
    foot = f'<div class="row axis" aria-hidden="true"><i></i><span class="track">{axis}</span><i></i></div>'
    return Markup(
        f'<div class="intervals" role="list" aria-label="{escape(caption)}">{"".join(out)}{foot}</div>'
    )


def share_bars(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], *, note: str = ""
) -> Markup:
    """A figure of horizontal bars, each parted into shares of 1.

    ``rows``: (label, parts), a part being (name, share, colour class); parts of 0 are left out.
    """
    names: dict[str, str] = {}
    bars = []
    for label, parts in rows:
        seen = [(name, share, colour) for name, share, colour in parts if share > 0]
        names |= {name: colour for name, _, colour in seen}
        told = ", ".join(f"{name} {percent(share)}" for name, share, _ in seen)
        pieces = "".join(
            f'<i class="{colour}" style="width:{100 * share:.2f}%" '
            f'title="{escape(f"{name} {percent(share)}")}"></i>'
            for name, share, colour in seen
        )
        spoken = escape(f"{label}: {told}")
        bars.append(
            f'<div class="bar"><span>{escape(label)}</span>'
            f'<span class="parts" role="img" aria-label="{spoken}">{pieces}</span></div>'
        )
    legend = "".join(f'<span><i class="key {c}"></i>{escape(n)}</span>' for n, c in names.items())
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return Markup(
        f'<figure class="chart shares"><figcaption>{escape(title)}</figcaption>'
        f'<div class="legend">{legend}</div>{"".join(bars)}{note}</figure>'
    )


@dataclass(frozen=True)
class _Frame:
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool
    show: Number

    def x(self, value: float) -> float:
        low, high = self.x_range
        if self.log_x:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str) -> str:
        out = []
        for tick in ticks(*self.y_range, 4):
            y = self.y(tick)
            out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            out.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(self.show(tick))}</text>'
            )
        low, high = self.x_range
        marks = ticks(low, high, 5)
        if self.log_x:
            marks = [2.0**i for i in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
        for tick in marks:
            if tick == int(tick):
                told = f"{tick / 1000:g}k" if abs(tick) >= 10_000 else str(int(tick))
                out.append(
                    f'<text x="{self.x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{told}</text>'
                )
        unit = (
            f'<text class="unit" x="{LEFT - 16}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_label)}</text>'
        )
        out.append(unit)
        return "".join(out)


def _padded(low: float, high: float, fixed: tuple[float | None, float | None]) -> tuple[float, float]:
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom = fixed[0] if fixed[0] is not None else low - pad
    top = fixed[1] if fixed[1] is not None else high + pad
    return (bottom, top) if top > bottom else (bottom, bottom + 1.0)


def _runs(s: Series) -> list[list[tuple[float, float]]]:
    """The curve's parts between gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(s.x, s.y, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _figure(
    title: str, frame: _Frame, curves: Sequence[Series], drawn: str, note: str, show: Number, x_label: str
) -> Markup:
    told = "; ".join(f"{s.name} {_told(s, show)}" for s in curves)
    legend = ""
    if len(curves) > 1:
        legend = "".join(
            f'<span><i class="key {s.colour or f"c{i}"}"></i>{escape(s.name)}</span>'
            for i, s in enumerate(curves)
        )
        legend = f'<div class="legend">{legend}</div>'
    data = {
        "frame": [LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT, *frame.x_range],
        "log": frame.log_x,
        "label": x_label,
        "series": [[s.name, list(s.x), [show(v) for v in s.y]] for s in curves],
    }
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    label = escape(f"{title}. {told}")
    return Markup(
        f'<figure class="chart" data-chart="{escape(json.dumps(data, ensure_ascii=False))}">'
        f"<figcaption>{escape(title)}</figcaption>{legend}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{label}">'
        f"{frame.axes(x_label)}{drawn}</svg>{note}</figure>"
    )


def _told(s: Series, show: Number) -> str:
    finite = [v for v in s.y if math.isfinite(v)]
    return f"from {show(finite[0])} to {show(finite[-1])}" if finite else "no value"
