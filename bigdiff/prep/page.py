"""The report's building blocks: a page that runs nothing and fetches nothing, sections, tables, pictures.

Every text is escaped on its way in, since captions, URLs and causes come from strangers. What is HTML already says so
by its type.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

CAPTION_SHOWN: Final = 140  # characters
URL_SHOWN: Final = 300  # characters
_KILO: Final = 1000.0
_LARGE: Final = 1e9  # from which a number is written with its power of ten
_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB", "PB")
_STYLE: Final = """
:root { --ink: #1c2430; --pale: #5c6675; --line: #e2e6ec; --on: #2f6fb2; --off: #c9d3df; --mark: #c0392b;
  --paper: #fff; --soft: #f3f6f9; color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e8ee; --pale: #9aa5b3; --line: #303945; --on: #6aa5e3; --off: #3d4855; --mark: #e8705f;
    --paper: #14181d; --soft: #1e242c }
}
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 68rem; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin: 0 0 .3rem }
h2 { font-size: 1.2rem; margin: 3rem 0 .6rem; padding-top: .8rem; border-top: 2px solid var(--line) }
h3 { font-size: .98rem; margin: 1.7rem 0 .5rem }
p { margin: .3rem 0 .9rem; color: var(--pale); max-width: 50rem }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; font-size: .9rem }
a { color: var(--on) }
.wide { overflow-x: auto }
.wide + :not(h3) { margin-top: .9rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .34rem 1rem .34rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td:last-child, th:last-child { padding-right: 0 }
thead th { font-weight: 600; color: var(--pale); font-size: .85rem; white-space: nowrap; vertical-align: bottom }
td, tbody th { overflow-wrap: anywhere; min-width: 9rem }
tbody th { font-weight: normal }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 0 }
td.bars { width: 26%; min-width: 7rem; vertical-align: middle }
.bar { background: var(--soft); height: .8rem; border-radius: 2px }
.bar i { display: block; height: 100%; background: var(--on); border-radius: 2px }
.url { color: var(--pale); font-size: .8rem; max-width: 20rem; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; unicode-bidi: isolate }
.totals { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 1.4rem 0 }
.totals b { display: block; font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums }
.totals span, figcaption { color: var(--pale); font-size: .85rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.4rem 2rem;
  margin-bottom: 1.6rem }
figure { margin: 0; min-width: 0 }
svg { width: 100%; display: block }
svg text { font-size: 11px; fill: var(--pale) }
svg text.mark { fill: var(--mark) }
rect.on { fill: var(--on) }
rect.off { fill: var(--off) }
line.axis { stroke: var(--line) }
line.mark { stroke: var(--mark); stroke-dasharray: 4 3 }
polyline { fill: none; stroke: var(--on); stroke-width: 2; stroke-linejoin: round }
circle.mark { fill: var(--mark) }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.6rem, 1fr)); gap: 1rem }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: 1rem 2rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; border-left: 3px solid var(--line);
  padding-left: .7rem }
.gallery img, .pair img { width: 96px; height: 96px; display: block; margin-bottom: .3rem;
  border: 1px solid var(--line) }
.gallery figcaption, .pair figcaption { line-height: 1.3; font-size: .78rem; overflow-wrap: anywhere }
figcaption b { display: block; color: var(--ink); font-weight: 600 }
figcaption small { display: block; margin-top: .2rem; font-size: .72rem }
summary { cursor: pointer; font-weight: 600; margin: .8rem 0 }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.4;
  border-radius: 4px }
@media (max-width: 40rem) {
  body { margin: 1.2rem auto; padding: 0 .9rem }
  .totals { gap: .8rem 1.6rem }
  .totals b { font-size: 1.25rem }
  th, td { padding-right: .7rem }
  td, tbody th { min-width: 8rem }
  td.bars, th.bars { display: none }
  .url { max-width: 9rem }
}
"""
# Nothing is fetched and nothing runs, whatever a text that slipped through might ask for.
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """HTML that stays as it is."""


class Right(str):
    """A text at the right of its column, as numbers are."""


class Url(str):
    """An address: one line, cut where it does not fit."""


Cell = str | int


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """The whole file; `style` is CSS beyond that of all pages."""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<style>{_STYLE}{style}</style></head><body>",
            *filter(None, parts),
            "</body></html>\n",
        ]
    )


def title_line(text: str) -> Markup:
    """The heading of the page."""
    return Markup(f"<h1>{escape(text)}</h1>")


def totals(numbers: Iterable[tuple[str, str]]) -> Markup:
    """Large numbers, or words, beside each other, and what each is."""
    cells = "".join(f"<div><b>{escape(number)}</b><span>{escape(label)}</span></div>" for number, label in numbers)
    return Markup(f'<div class="totals">{cells}</div>')


def section(title: str, parts: Iterable[str]) -> Markup:
    """A heading and what belongs below it; nothing where there is nothing."""
    body = "".join(parts)
    return Markup(f'<h2 id="{name(title)}">{escape(title)}</h2>{body}') if body else Markup()


def name(title: str) -> str:
    """The anchor of a section."""
    return "".join(each if each.isalnum() else "-" for each in title.partition(":")[0].lower())


def contents(sections: Iterable[str]) -> Markup:
    """Links to the sections: a long page needs them."""
    titles = [part.partition(">")[2].partition("</h2>")[0] for part in sections if part.startswith("<h2 ")]
    links = "".join(f'<a href="#{name(title)}">{title.partition(":")[0]}</a>' for title in titles)
    return Markup(f"<nav>{links}</nav>")


def heading(text: str) -> Markup:
    """A heading within a section."""
    return Markup(f"<h3>{escape(text)}</h3>")


def note(text: str) -> Markup:
    """A sentence or two; nothing for none."""
    return Markup(f"<p>{escape(text)}</p>") if text else Markup()


def details(summary: str, body: str) -> Markup:
    """What is shown on demand: markup as it is, a text as it stands."""
    shown = body if isinstance(body, Markup) else f"<pre>{escape(body)}</pre>"
    return Markup(f"<details><summary>{escape(summary)}</summary>{shown}</details>")


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], named: bool = False) -> Markup:
    """A table. Integers get separators and stand at the right; `named`: a row's first cell is its heading."""
    if not rows:
        return Markup()
    titles = "".join(f"<th{_kind(cell)}>{escape(text)}</th>" for text, cell in zip(head, rows[0], strict=True))
    body = "".join(
        "<tr>"
        + "".join(_cell(cell, 'th scope="row"' if named and not place else "td") for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return Markup(f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>')


def _cell(cell: Cell, tag: str) -> str:
    if isinstance(cell, int):
        content = f"{cell:,}"
    elif isinstance(cell, Url):
        content = f'<div class="url">{escape(cell[:URL_SHOWN])}</div>'
    else:
        content = cell if isinstance(cell, Markup) else escape(cell)
    return f"<{tag}{_kind(cell)}>{content}</{tag.partition(' ')[0]}>"


def _kind(cell: Cell) -> str:
    """The class of a cell's column."""
    if isinstance(cell, (int, Right)):
        return ' class="n"'
    return ' class="bars"' if isinstance(cell, Markup) else ""


def bar(part: int, whole: int) -> Markup:
    """A horizontal bar of `part` in `whole`; what is not nothing can be seen."""
    share = 100.0 * part / whole if whole else 0.0
    return Markup(f'<div class="bar"><i style="width:{max(share, 0.4) if part else 0:.2f}%"></i></div>')


def picture(jpeg: bytes, caption: str, strong: str = "", facts: str = "") -> Markup:
    """A small JPEG with a caption, a stronger line above it and facts below it."""
    source = b64encode(jpeg).decode()
    above = f"<b>{escape(strong)}</b>" if strong else ""
    below = f"<small>{escape(facts)}</small>" if facts else ""
    said = caption if len(caption) <= CAPTION_SHOWN else caption[: CAPTION_SHOWN - 3] + "..."
    return Markup(
        f'<figure><img alt="" src="data:image/jpeg;base64,{source}">'
        f"<figcaption>{above}<bdi>{escape(said)}</bdi>{below}</figcaption></figure>"
    )


def gallery(figures: Iterable[str]) -> Markup:
    """Pictures beside each other; nothing where there are none."""
    shown = "".join(figures)
    return Markup(f'<div class="gallery">{shown}</div>') if shown else Markup()


def charts(figures: Sequence[str]) -> Markup:
    """Charts that belong together, beside each other where there is room; nothing where there are none."""
    return Markup(f'<div class="charts">{"".join(figures)}</div>') if figures else Markup()


def share(part: int, whole: int) -> Right:
    """`part` of `whole` in per cent."""
    return Right(f"{part / whole:.1%}" if whole else "")


def size(count: float) -> str:
    """A number of bytes in the unit that fits, of 1000."""
    power = 0
    while count >= _KILO and power < len(_UNITS) - 1:
        count, power = count / _KILO, power + 1
    return f"{count:,.0f} {_UNITS[power]}" if count >= 100 or not power else f"{count:.3g} {_UNITS[power]}"


def number(value: float) -> str:
    """A score or a threshold, short."""
    if not 999.5 <= abs(value) < _LARGE:  # not-a-number, too
        return f"{value:.3g}"
    return f"{value:,.0f}"
