"""Elements: what is not markup is escaped, what is markup is not escaped twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.report.pagereader import Page
from whimbrel.report.markup import el, join, table, text


def test_text_is_escaped_once() -> None:
    assert text("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert text(text("<")) == "&lt;"


def test_control_characters_are_replaced() -> None:
    assert text("a\x00b\x1b[31mc\ud800") == "a\ufffdb\ufffd[31mc\ufffd"


def test_elements() -> None:
    assert el("p", "a<b", class_="x y") == '<p class="x y">a&lt;b</p>'
    assert el("line", x1=3, stroke_width=2, class_=None) == '<line x1="3" stroke-width="2"/>'
    assert el("rect", el("title", "t"), x=1) == '<rect x="1"><title>t</title></rect>'
    assert el("meta", name="a", content='"') == '<meta name="a" content="&quot;">'
    assert join("<", el("br")) == "&lt;<br>"


def test_table_sets_figures_to_the_right() -> None:
    page = Page(table(("name", "size"), [("a", 1), ("<b>", 2)], figures=frozenset({1})))
    assert len(page.named("td", "figure")) == 2
    assert [text for name, text in page.texts if name == "td"] == ["a", "1", "<b>", "2"]


@given(st.text(), st.text())
def test_any_text_survives_as_it_is(content: str, attribute: str) -> None:
    source = el("p", content, title=attribute)
    page = Page(source)
    assert [tag for tag, _ in page.elements] == ["p"]
    assert list(page.elements[0][1]) == ["title"]
