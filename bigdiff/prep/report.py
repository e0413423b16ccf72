"""`report/index.html`: what became of every row, for a person to judge. One file, no script, nothing fetched.

It holds no time and no place, so that the same input gives the same bytes.
"""

import io
import os
import tarfile
from base64 import b64encode
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import Final

import duckdb
import yaml
from PIL import Image

from bigdiff.config.errors import RunError
from bigdiff.data.manifest import Manifest
from bigdiff.prep import chart
from bigdiff.prep.layout import Layout
from bigdiff.prep.pack import DUPLICATE, duplicates
from bigdiff.prep.select import Selection
from bigdiff.prep.verify import thumbnail
from bigdiff.runtime.files import write_bytes

KEPT_SHOWN: Final = 24
REJECTED_SHOWN: Final = 6  # per cause
_BELOW: Final = ("pwatermark", "punsafe")  # scores whose rule keeps what lies below the threshold
_STYLE: Final = """
:root { --ink: #1c2430; --pale: #66707f; --line: #e2e6ec; --on: #2f6fb2; --off: #c9d3df; --mark: #c0392b }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 68rem; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin: 0 0 .3rem }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem }
p { margin: .3rem 0 .9rem; color: var(--pale); max-width: 46rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .36rem 1rem .36rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600; color: var(--pale); font-size: .85rem; white-space: nowrap }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #f1f4f8; height: .8rem; border-radius: 2px; min-width: 9rem }
.bar i { display: block; height: 100%; background: var(--on); border-radius: 2px }
.url { color: var(--pale); font-size: .8rem; max-width: 24rem; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap }
.totals { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 1.4rem 0 }
.totals b { display: block; font-size: 1.6rem; font-weight: 600 }
.totals span, figcaption { color: var(--pale); font-size: .85rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.6rem 2rem }
figure { margin: 0 }
svg { width: 100%; display: block }
svg text { font-size: 11px; fill: var(--pale) }
svg text.mark { fill: var(--mark) }
rect.on { fill: var(--on) }
rect.off { fill: var(--off) }
line.axis { stroke: var(--line) }
line.mark { stroke: var(--mark); stroke-dasharray: 4 3 }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: 1rem }
.gallery img { width: 96px; height: 96px; display: block; margin-bottom: .3rem; border: 1px solid var(--line) }
.gallery figcaption { line-height: 1.3; font-size: .78rem }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.4; border-radius: 4px }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """Why rows were lost at a step."""

    step: str  # "download", "verify" or "pack"
    cause: str
    rows: int
    example: str  # the first URL
    pictures: tuple[bytes, ...]  # small JPEGs, where they could be decoded


def write(layout: Layout, selection: Selection, manifest: Manifest) -> None:
    """Write the page of a job whose shards are finished and whose work folder is still there."""
    causes = [*_rejected(layout), *_duplicates(layout)]
    page = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>Image set report</title>',
            f"<style>{_STYLE}</style></head><body>",
            _totals(selection, manifest),
            _funnel(selection, causes, manifest),
            _histograms(selection),
            _causes(causes),
            _kept(layout, manifest),
            _refused(causes),
            "<h2>Settings</h2>",
            f"<pre>{escape(yaml.safe_dump(manifest.lineage, sort_keys=False, width=100))}</pre>",
            "</body></html>\n",
        ]
    )
    write_bytes(layout.report, page.encode())


def _rejected(layout: Layout) -> list[Cause]:
    files = str(layout.rejected).replace("'", "''")
    with duckdb.connect() as base:
        found = base.execute(
            "SELECT step, cause, count(*) AS lost, arg_min(url, row), "
            f"(list(picture ORDER BY row) FILTER (picture IS NOT NULL))[:{REJECTED_SHOWN}] "
            f"FROM read_parquet('{files}/*.parquet') GROUP BY step, cause ORDER BY step, lost DESC, cause"
        ).fetchall()
    return [
        Cause(step=step, cause=cause, rows=rows, example=url, pictures=tuple(pictures or ()))
        for step, cause, rows, url, pictures in found
    ]


def _duplicates(layout: Layout) -> list[Cause]:
    found = duplicates(layout)
    if not found:
        return []
    pictures = []
    for sample in found[:REJECTED_SHOWN]:
        with (layout.pictures / sample["unit"]).open("rb") as source:
            content = os.pread(source.fileno(), sample["length"], sample["offset"])
        pictures.append(_small(content))
    example = found[0]["url"]
    return [Cause(step="pack", cause=DUPLICATE, rows=len(found), example=example, pictures=tuple(pictures))]


def _totals(selection: Selection, manifest: Manifest) -> str:
    size = sum(shard.bytes for shard in manifest.shards)
    side = manifest.contract["resolution"]
    numbers = [
        (f"{selection.rows:,}", "rows of metadata"),
        (f"{manifest.samples:,}", f"samples of {side} x {side}"),
        (f"{manifest.samples / selection.rows:.1%}", "of all rows kept"),
        (f"{len(manifest.shards):,}", "shards"),
        (f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB", "in tars"),
    ]
    cells = "".join(f"<div><b>{number}</b><span>{label}</span></div>" for number, label in numbers)
    return f'<h1>Image set report</h1><p>What became of every row of the metadata.</p><div class="totals">{cells}</div>'


def _funnel(selection: Selection, causes: list[Cause], manifest: Manifest) -> str:
    lines: list[tuple[str, int, int | None]] = [("all rows", selection.rows, None)]
    lines += [(count.rule, count.left, count.only) for count in selection.counts]
    left = selection.kept
    for step, label in (
        ("download", "downloaded"),
        ("verify", "sound picture and caption"),
        ("pack", "not a duplicate"),
    ):
        left -= sum(cause.rows for cause in causes if cause.step == step)
        lines.append((label, left, None))
    if left != manifest.samples:
        raise RunError(f"{left - manifest.samples} rows were lost without a cause: delete the folder and start again")
    rows = []
    before = selection.rows
    for label, count, only in lines:
        alone = "" if only is None else f"{only:,}"
        rows.append(
            f'<tr><td>{escape(label)}</td><td class="n">{count:,}</td><td class="n">{before - count:,}</td>'
            f'<td class="n">{alone}</td><td>{chart.bar(count, selection.rows)}</td></tr>'
        )
        before = count
    return (
        "<h2>Funnel</h2><p>Each rule counts what passed all rules above it. <em>Only this rule</em> counts the rows "
        "that every other rule would have kept: what loosening it alone would bring.</p>"
        '<table><tr><th>rule or step</th><th class="n">left</th><th class="n">lost here</th>'
        f'<th class="n">only this rule</th><th></th></tr>{"".join(rows)}</table>'
    )


def _histograms(selection: Selection) -> str:
    if not selection.histograms:
        return ""
    drawn = "".join(chart.histogram(each, each.score in _BELOW) for each in selection.histograms)
    note = "All rows, before any rule; the dashed line is the threshold, pale bars lie on its wrong side."
    return f'<h2>Scores</h2><p>{note}</p><div class="charts">{drawn}</div>'


def _causes(causes: list[Cause]) -> str:
    titles = {"download": "Not downloaded", "verify": "Downloaded and refused", "pack": "Left out"}
    sections = []
    for step, title in titles.items():
        found = [cause for cause in causes if cause.step == step]
        total = sum(cause.rows for cause in found)
        rows = "".join(
            f'<tr><td>{escape(cause.cause)}</td><td class="n">{cause.rows:,}</td>'
            f'<td>{chart.bar(cause.rows, total)}</td><td><div class="url">{escape(cause.example)}</div></td></tr>'
            for cause in found
        )
        head = '<tr><th>cause</th><th class="n">rows</th><th></th><th>first of them</th></tr>'
        table = f"<table>{head}{rows}</table>" if found else "<p>None.</p>"
        sections.append(f"<h2>{title}: {total:,}</h2>{table}")
    return "".join(sections)


def _kept(layout: Layout, manifest: Manifest) -> str:
    """The first samples of the first shard: the order is random already."""
    figures: list[str] = []
    captions: dict[str, str] = {}
    with tarfile.open(layout.output / f"{manifest.shards[0].name}.tar", "r:") as tar:
        for member in islice(tar, 3 * KEPT_SHOWN):
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            if extension == manifest.contract["format"]:
                captions[key] = _image(_small(content.read()))
            elif extension == "txt":
                figures.append(_figure(captions[key], content.read().decode()))
    return f'<h2>Kept</h2><div class="gallery">{"".join(figures)}</div>'


def _refused(causes: list[Cause]) -> str:
    figures = [_figure(_image(picture), cause.cause) for cause in causes for picture in cause.pictures]
    if not figures:
        return ""
    return f'<h2>Refused</h2><p>Those that could be decoded.</p><div class="gallery">{"".join(figures)}</div>'


def _small(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as opened:
        return thumbnail(opened.convert("RGB"))


def _image(content: bytes) -> str:
    return f'<img alt="" src="data:image/jpeg;base64,{b64encode(content).decode()}">'


def _figure(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{escape(caption[:120])}</figcaption></figure>"
