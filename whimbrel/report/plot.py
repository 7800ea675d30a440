"""Plots as inline SVG: colours come from the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whimbrel.model.figures import duration_text
from whimbrel.report.markup import Markup, el, join
from whimbrel.report.scale import Scale, linear_ticks, log_ticks, time_ticks

WIDTH = 640
HEIGHT = 250
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 20, 34
LOG_FROM_RATIO = 40
"""From this ratio of the largest to the smallest bar on, a linear axis would show only the largest."""
_CHAR = 6.4
"""Width of a character of the labels, to keep them within the plot."""

Figure = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a short name below it, its value, a kind that gives its colour, and a text shown on hovering."""

    name: str
    value: float
    kind: str
    hint: str


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in a row of the timeline, in seconds from its begin."""

    row: str
    start_s: float
    end_s: float
    kind: str
    hint: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A single value beside a line, with a dashed line through it."""

    at_s: float
    value: float
    label: str


def _svg(height: float, title: str, *parts: object, width: int = WIDTH) -> Markup:
    return el(
        "svg", el("title", title), *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=title, width="100%"
    )


def _label(x: float, y: float, words: str, *, anchor: str = "middle", class_: str = "tick") -> Markup:
    return el("text", words, x=round(x, 1), y=round(y, 1), text_anchor=anchor, class_=class_)


def _grid(scale: Scale, ticks: Sequence[float], figure: Figure) -> Markup:
    return join(
        *(
            join(
                el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=scale(tick), y2=scale(tick), class_="grid"),
                _label(LEFT - 8, scale(tick) + 4, figure(tick), anchor="end"),
            )
            for tick in ticks
        )
    )


def _time_axis(scale: Scale, span_s: float, y: float) -> Markup:
    return join(
        *(
            _label(scale(tick), y, duration_text(tick) if tick else "0", anchor="middle" if tick else "start")
            for tick in time_ticks(span_s)
        )
    )


def bars(title: str, data: Sequence[Bar], figure: Figure) -> Markup:
    """A bar for each value; the axis is logarithmic (and says so) when the values differ much."""
    positive = [bar.value for bar in data if bar.value > 0]
    bottom = HEIGHT - BOTTOM
    log = bool(positive) and max(positive) / min(positive) >= LOG_FROM_RATIO
    if log:
        ticks = log_ticks(min(positive) / 2, max(positive))
    else:
        ticks = linear_ticks(max(positive, default=0.0), binary=True)
    scale = Scale(ticks[0], ticks[-1], bottom, TOP, log=log)
    slot = (WIDTH - LEFT - RIGHT) / max(len(data), 1)
    width = max(min(slot * 0.72, 46.0), 0.8)
    every = max(-(-len(data) // 20), 1)
    drawn = []
    for index, bar in enumerate(data):
        x, y = LEFT + slot * (index + 0.5), scale(bar.value) if bar.value > 0 else bottom - 1
        drawn.append(
            el(
                "rect",
                el("title", bar.hint),
                x=round(x - width / 2, 2),
                y=min(y, bottom - 1),
                width=round(width, 2),
                height=round(max(bottom - y, 1.0), 2),
                rx=2 if width > 6 else 0,
                class_=f"bar {bar.kind}",
            )
        )
        if slot >= 52:
            drawn.append(_label(x, min(y, bottom - 1) - 5, figure(bar.value), class_="value"))
        if index % every == 0:
            drawn.append(_label(x, HEIGHT - BOTTOM + 16, bar.name))
    note = _label(WIDTH - RIGHT, HEIGHT - 3, "logarithmic axis", anchor="end", class_="note") if log else ""
    return _svg(HEIGHT, title, _grid(scale, ticks, figure), *drawn, note)


def line(
    title: str,
    points: Sequence[tuple[float, float, str]],
    figure: Figure,
    *,
    binary: bool = False,
    mark: Mark | None = None,
) -> Markup:
    """A line through ``(seconds, value, hint)``, with dots; ``mark`` sets one more value against it."""
    values = [value for _, value, _ in points] + ([mark.value] if mark else [])
    times = [at for at, _, _ in points] + ([mark.at_s] if mark else [])
    ticks = linear_ticks(max(values, default=0.0), binary=binary)
    first, last = min(times, default=0.0), max(times, default=1.0)
    if len(points) < 2 or first < 2 * (last - first):
        first = 0.0
    across = Scale(first, max(last, first + 1.0), LEFT + 10, WIDTH - RIGHT - 10)
    up = Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    path = " ".join(f"{across(at)},{up(value)}" for at, value, _ in points)
    parts: list[object] = [_grid(up, ticks, figure), _offset_axis(across)]
    if len(points) > 1:
        parts.append(el("polyline", points=path, class_="line"))
    radius = 4 if len(points) <= 60 else 2
    parts.extend(
        el("circle", el("title", hint), cx=across(at), cy=up(value), r=radius, class_="dot")
        for at, value, hint in points
    )
    if mark:
        y = up(mark.value)
        parts += [
            el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="marked"),
            el("circle", el("title", mark.label), cx=across(mark.at_s), cy=y, r=6, class_="mark"),
            _label(LEFT + 6, y - 7, mark.label, anchor="start", class_="value"),
        ]
    return _svg(HEIGHT, title, *parts)


def _offset_axis(across: Scale) -> Markup:
    """Time labels of an axis that may begin later than 0."""
    ticks = [tick for tick in time_ticks(across.high) if tick >= across.low]
    if len(ticks) < 2:
        ticks = [across.low, across.high]
    y = HEIGHT - BOTTOM + 18
    return join(
        *(_label(across(tick), y, duration_text(tick) if tick else "0") for tick in ticks),
        _label(WIDTH - RIGHT, HEIGHT - 2, "time since the start", anchor="end", class_="note"),
    )


def timeline(
    title: str, spans: Sequence[Span], *, shade: tuple[float, float, str] | None = None, width: int = WIDTH
) -> Markup:
    """Rows of stretches of time; spans of the same row share it. ``shade`` marks one stretch through all rows."""
    rows = list(dict.fromkeys(span.row for span in spans))
    left = min(max((len(row) for row in rows), default=0), 26) * _CHAR + 18
    pitch, top = 24, 24 if shade else 8
    height = top + pitch * len(rows) + 30
    total = max([span.end_s for span in spans] + [shade[1] if shade else 0.0, 1.0])
    across = Scale(0.0, total, left, width - 90)
    parts: list[object] = []
    for tick in time_ticks(total):
        x = across(tick)
        parts.append(el("line", x1=x, x2=x, y1=top, y2=height - 26, class_="grid"))
    parts.append(_time_axis(across, total, height - 8))
    if shade:
        x1, x2 = across(shade[0]), across(shade[1])
        parts.append(
            el(
                "rect",
                el("title", shade[2]),
                x=x1,
                y=top,
                width=max(x2 - x1, 2.0),
                height=pitch * len(rows),
                class_="shade",
            )
        )
        anchor = "end" if x1 > width / 2 else "start"
        parts.append(_label(x2 if anchor == "end" else x1, top - 8, shade[2], anchor=anchor, class_="value"))
    for index, row in enumerate(rows):
        y = top + pitch * index
        mine = [span for span in spans if span.row == row]
        parts.append(
            _label(left - 10, y + 16, row if len(row) <= 26 else f"{row[:25]}\u2026", anchor="end", class_="row")
        )
        for span in mine:
            x1, x2 = across(span.start_s), across(span.end_s)
            shape = el(
                "rect",
                el("title", span.hint),
                x=x1,
                y=y + 5,
                width=round(max(x2 - x1, 2.5), 2),
                height=pitch - 10,
                rx=2,
                class_=f"span {span.kind}",
            )
            parts.append(shape)
        busy = sum(span.end_s - span.start_s for span in mine)
        end = max(across(span.end_s) for span in mine)
        times = f" \u00d7{len(mine)}" if len(mine) > 1 else ""
        parts.append(_label(max(end, left) + 7, y + 16, duration_text(busy) + times, anchor="start"))
    return _svg(height, title, *parts, width=width)
