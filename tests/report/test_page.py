"""The HTML page: self-contained, escaped, complete."""

from html.parser import HTMLParser

import pytest

from vistill.report.page import (
    Card,
    Figure,
    Gallery,
    Page,
    Panel,
    figure_table,
    flatten,
    render,
    render_card,
    table,
)

PIXEL = "data:image/jpeg;base64,/9j/4AAQSkZJRg=="
EVIL = '"><script>alert(1)</script>&amp;'


class Reader(HTMLParser):
    """Collects elements and text, and checks that what is opened is closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def page(text: str = "plain") -> Page:
    card = Card(text, f"a dog {text}", [text, "a dog"], {"CIDEr": 61.25}, PIXEL, frozenset({"dog"}))
    figure = Figure(f"CIDEr {text}", 61.234, 57.0, 65.0)
    return Page(
        title=text,
        subtitle=text,
        headline=[figure],
        figures=[figure, Figure("BLEU-4", 23.4, 22.0, 25.0)],
        panels=[Panel(text, table(("what", text), [(text, 3), ("b", 0.5)]), text)],
        galleries=[Gallery("worst", text, text, [card])],
        details={text: {"deep": text, "list": [text, 2]}},
    )


def test_everything_is_on_the_page() -> None:
    reader = read(render(page()))
    text = " ".join(reader.text)
    for wanted in ("CIDEr plain", "61.2", "61.23", "57.00 to 65.00", "BLEU-4", "plain.deep", "plain, 2"):
        assert wanted in text
    anchors = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    links = {str(attributes["href"]).removeprefix("#") for tag, attributes in reader.elements if tag == "a"}
    assert links <= anchors
    assert "worst" in links


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = render(page())
    reader = read(html)
    assert {tag for tag, _ in reader.elements} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
    } == set()
    for _, attributes in reader.elements:
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert str(attributes.get("href", "#")).startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_text_is_escaped_everywhere() -> None:
    html = render(page(EVIL))
    assert "<script" not in html
    reader = read(html)
    assert EVIL in "".join(reader.text)
    image = next(attributes for tag, attributes in reader.elements if tag == "img")
    assert image["alt"] == f"a dog {EVIL}"


def test_words_that_no_reference_has_are_marked() -> None:
    card = Card("k", "A Unicorn, on grass", ["a horse"], {}, PIXEL, frozenset({"unicorn", "grass"}))
    assert "A <mark>Unicorn,</mark> on <mark>grass</mark>" in render_card(card)


def test_a_card_without_picture_or_caption_says_so() -> None:
    html = render_card(Card("k", "", [], {}))
    read(html)
    assert "not decodable" in html
    assert "(no words)" in html


def test_scores_share_one_scale() -> None:
    html = figure_table([Figure("a", 61, 60, 62), Figure("b", 10, 9, 11)])
    assert "0 to 80" in html


@pytest.mark.parametrize(
    ("value", "shown"), [(1234, "1,234"), (0.5, "0.500"), ("x<y", "x&lt;y"), (True, "True")]
)
def test_table_cells(value: object, shown: str) -> None:
    assert f">{shown}</td>" in table(("v",), [(value,)])


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "e": None}) == [
        ("a.b.c", "1"),
        ("d", "1, 2"),
        ("e", "None"),
    ]
