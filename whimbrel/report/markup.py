"""HTML and SVG elements as text that is escaped unless it was made here."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_VOID = frozenset({"meta", "br", "line", "rect", "circle", "path", "polyline"})


class Markup(str):
    """Text that is markup already. Only this module makes it from parts."""

    __slots__ = ()


def text(value: object) -> Markup:
    """``value`` escaped for an element's content or a quoted attribute; control characters become ``\ufffd``."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True))


def join(*parts: object) -> Markup:
    """The parts one after the other, each escaped if it is not markup."""
    return Markup("".join(text(part) for part in parts))


def el(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. ``class_`` gives ``class``, other underscores become dashes; None leaves an attribute out."""
    pairs = [
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    start = f"<{name}{''.join(pairs)}"
    if name in _VOID and not children:
        return Markup(f"{start}/>" if name not in {"meta", "br"} else f"{start}>")
    return Markup(f"{start}>{join(*children)}</{name}>")


def table(head: tuple[str, ...], rows: list[tuple[object, ...]], *, figures: frozenset[int] = frozenset()) -> Markup:
    """A table with a head; columns whose index is in ``figures`` are set to the right."""

    def cell(tag: str, index: int, value: object) -> Markup:
        return el(tag, value, class_="figure" if index in figures else None)

    return el(
        "div",
        el(
            "table",
            el("thead", el("tr", *(cell("th", index, one) for index, one in enumerate(head)))),
            el("tbody", *(el("tr", *(cell("td", index, one) for index, one in enumerate(row))) for row in rows)),
        ),
        class_="scroll",
    )
