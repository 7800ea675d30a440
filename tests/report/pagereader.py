"""Reads a report's page as a browser would, for the tests: elements, their attributes and their texts."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})


class Page(HTMLParser):
    """Elements in order as ``(name, attributes)``; ``texts`` by the name of the element they stand in."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1], data.strip()))

    @property
    def words(self) -> str:
        """All text except the style sheet's."""
        return "\n".join(text for name, text in self.texts if name != "style")

    def named(self, name: str, class_: str | None = None) -> list[dict[str, str | None]]:
        """Attributes of the elements of this name (and class)."""
        return [
            attributes
            for tag, attributes in self.elements
            if tag == name and (class_ is None or class_ in (attributes.get("class") or "").split())
        ]

    def rows(self) -> list[str]:
        """Terms and descriptions of the summary, as ``label=value``."""
        terms = [text for name, text in self.texts if name == "dt"]
        values = [text for name, text in self.texts if name == "dd"]
        assert len(terms) == len(values)
        return [f"{term}={value}" for term, value in zip(terms, values, strict=True)]
