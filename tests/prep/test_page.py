from html.parser import HTMLParser

import pytest

from bigdiff.prep.page import (
    Markup,
    Right,
    Url,
    bar,
    contents,
    details,
    document,
    name,
    number,
    picture,
    section,
    size,
    table,
    title_line,
    totals,
)

EVIL = """"'><script>alert(1)</script>&amp;"""


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def test_every_text_is_escaped_once() -> None:
    parts = [table((EVIL, EVIL, EVIL), [[EVIL, Right(EVIL), Url(EVIL)]], named=True), picture(b"", EVIL, EVIL, EVIL)]
    found = read(document(EVIL, [section(EVIL, parts)]))
    assert "script" not in found.tags
    assert found.texts.count(EVIL) == 11  # the title, the heading, three of the head, three cells, three of the picture


def test_what_opens_the_page_and_what_is_shown_on_demand_is_escaped_too() -> None:
    parts = [title_line(EVIL), totals([(EVIL, EVIL)]), details(EVIL, EVIL), details("b", table(("a",), [["x"]]))]
    found = read(document("a", parts, "svg { color: red }"))
    assert "script" not in found.tags
    assert found.texts.count(EVIL) == 5
    assert found.tags.count("table") == 1 and found.tags.count("pre") == 1
    assert "svg { color: red }" in document("a", parts, "svg { color: red }")


def test_a_table_puts_numbers_at_the_right_and_says_what_a_row_is_of() -> None:
    drawn = table(("a", "b", "c", "d"), [["x", 1234567, Right("5%"), bar(1, 2)]], named=True)
    assert '<th>a</th><th class="n">b</th><th class="n">c</th><th class="bars">d</th>' in drawn
    assert '<th scope="row">x</th><td class="n">1,234,567</td><td class="n">5%</td><td class="bars">' in drawn
    assert table(("a",), []) == ""
    assert section("a", ["", Markup()]) == ""


def test_links_lead_to_the_sections() -> None:
    sections = [section("Not downloaded: 1,234", ["a"]), section("", []), section("Sizes", ["b"])]
    assert contents(sections) == ('<nav><a href="#not-downloaded">Not downloaded</a><a href="#sizes">Sizes</a></nav>')
    assert f'id="{name("Not downloaded: 7")}"' in sections[0]


def test_long_captions_and_urls_are_cut() -> None:
    drawn = picture(b"x", "a" * 5000) + table(("u",), [[Url("b" * 5000)]])
    assert len(drawn) < 1000
    assert "aaa..." in drawn


def test_a_bar_is_a_share_and_never_invisible() -> None:
    assert "width:25.00%" in bar(1, 4)
    assert "width:0.40%" in bar(1, 10**9)
    assert "width:0.00%" in bar(0, 4)
    assert "width:0.00%" in bar(0, 0)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1 kB"), (348_160, "348 kB"), (1.234e12, "1.23 TB")]
)
def test_sizes_in_the_unit_that_fits(count: float, said: str) -> None:
    assert size(count) == said
    assert size(2e19) == "20,000 PB"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5.0, "5"),
        (0.5, "0.5"),
        (0.123456, "0.123"),
        (1234.5, "1,234"),
        (-2.0, "-2"),
        (1e300, "1e+300"),
        (float("nan"), "nan"),
        (999.9, "1,000"),
    ],
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert number(value) == said
