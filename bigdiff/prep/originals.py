"""What the pictures of the set were before they were stored: sizes and proportions; and what became of that.

Whole ones have their own sizes, cropped ones lie in buckets or are squares.
"""

import math
from collections import defaultdict
from typing import Final

import duckdb

from bigdiff.data.manifest import Manifest
from bigdiff.prep import chart
from bigdiff.prep.buckets import are_whole
from bigdiff.prep.chart import Bars, Mark
from bigdiff.prep.page import Cell, Markup, Right, bar, charts, heading, note, number, section, share, size, table
from bigdiff.prep.query import run

_BINS: Final = 40
_TAIL: Final = 0.99  # of the pictures lie within the histogram
# width / height, up to which; by the usual formats
_ASPECTS: Final = (
    (0.5, "1:2 and taller"),
    (0.64, "to 9:14"),
    (0.71, "about 2:3"),
    (0.9, "about 3:4 and 4:5"),
    (1.1, "about square"),
    (1.41, "about 5:4 and 4:3"),
    (1.56, "about 3:2"),
    (2.0, "about 16:9"),
    (math.inf, "2:1 and wider"),
)


def written(base: duckdb.DuckDBPyConnection, columns: tuple[str, ...], manifest: Manifest) -> Markup:
    """The section of the page: of the samples that are in the set."""
    parts: list[str] = []
    if {"original_width", "original_height"} <= {*columns}:
        enlarged = _enlarged(base) if {"width", "height"} <= {*columns} else None
        parts += [*_sides(base, int(manifest.contract["resolution"]), enlarged), *_aspects(base, _cut(manifest))]
    if are_whole(manifest.contract) and {"width", "height"} <= {*columns}:
        parts.append(_whole(base, int(manifest.contract["resolution"])))
    return section("Sizes", [*parts, *_buckets(manifest)])


def _cut(manifest: Manifest) -> str:
    if are_whole(manifest.contract):
        return "nothing"
    shape = "nearest bucket's shape" if any(manifest.buckets) else "centre square"
    return f"what lies beyond the {shape}"


def _whole(base: duckdb.DuckDBPyConnection, side: int) -> Markup:
    """What whole pictures take, and how much of them a square shows."""
    ((pixels, longest),) = run(
        base,
        "SELECT avg(width * height), max(greatest(width, height)) FROM facts WHERE step IS NULL",
        "counting sizes",
    )
    return note(
        f"Stored whole: {number(pixels)} pixels a picture on average, {number(pixels / side**2)} times those of the "
        f"square that is shown of it; the longest side is {longest:,}."
    )


def _enlarged(base: duckdb.DuckDBPyConnection) -> int:
    """Samples that are stored larger than their original was."""
    query = "SELECT count(*) FROM facts WHERE step IS NULL AND (original_width < width OR original_height < height)"
    return int(run(base, query, "counting sizes")[0][0])


def _sides(base: duckdb.DuckDBPyConnection, resolution: int, enlarged: int | None) -> list[str]:
    """The shorter sides, beside the side that is stored."""
    sides = run(
        base,
        "SELECT least(original_width, original_height)::INTEGER AS side, count(*) FROM facts "
        "WHERE step IS NULL AND side IS NOT NULL GROUP BY side ORDER BY side",
        "counting sizes",
    )
    total = sum(count for _, count in sides)
    if not total:
        return []
    high, seen = resolution, 0
    for side, count in sides:
        seen += count
        high = max(high, side)
        if seen >= _TAIL * total:
            break
    low = min(sides[0][0], resolution)
    width = (high - low) / _BINS or 1.0
    counts = [0] * _BINS
    for side, count in sides:
        if side <= high:
            counts[min(int((side - low) / width), _BINS - 1)] += count
    beyond = sum(count for side, count in sides if side > high)
    drawn = Bars(
        name="shorter side of the original, pixels",
        low=low,
        high=high,
        counts=tuple(counts),
        said=f"{total:,} samples; the dashed line is the resolution"
        + (f", {beyond:,} beyond the right end" if beyond else ""),
        marks=(Mark(value=resolution, below=False),),
    )
    bounds = sorted({256, 384, 512, 768, 1024, 1536, 2048, resolution})
    rows: list[list[Cell]] = []
    for least, most in zip([0, *bounds], [*bounds, None], strict=True):
        count = sum(samples for side, samples in sides if least <= side and (most is None or side < most))
        if count:
            label = f"{least:,} and more" if most is None else f"{least:,} to {most - 1:,}"
            rows.append([label, count, share(count, total), bar(count, total)])
    said = ""
    if enlarged is not None:
        said = (
            f"{enlarged:,} of {total:,} samples ({share(enlarged, total)}) are stored larger than their original was; "
            "pack.min_side refuses such."
        )
    return [
        note(said),
        charts([chart.histogram(drawn)]) if low < high else "",
        table(("shorter side, pixels", "samples", "share", ""), rows, named=True),
    ]


def _aspects(base: duckdb.DuckDBPyConnection, cut: str) -> list[str]:
    whens = " ".join(
        f"WHEN original_width < {bound!r} * original_height THEN {place}"
        for place, (bound, _) in enumerate(_ASPECTS[:-1])
    )
    found = dict(
        run(
            base,
            f"SELECT CASE {whens} ELSE {len(_ASPECTS) - 1} END AS place, count(*) FROM facts "
            "WHERE step IS NULL AND original_width > 0 AND original_height > 0 GROUP BY place",
            "counting aspects",
        )
    )
    total = sum(found.values())
    rows: list[list[Cell]] = [
        [label, found[place], share(found[place], total), bar(found[place], total)]
        for place, (_, label) in enumerate(_ASPECTS)
        if place in found
    ]
    said = f"Width to height of the originals; {cut} was cut off."
    return [heading("Proportions"), note(said), table(("width : height", "samples", "share", ""), rows, named=True)]


def _buckets(manifest: Manifest) -> list[str]:
    samples: dict[str, int] = defaultdict(int)
    shards: dict[str, int] = defaultdict(int)
    tars: dict[str, int] = defaultdict(int)
    for shard in manifest.shards:
        if shard.bucket:
            samples[shard.bucket] += shard.samples
            shards[shard.bucket] += 1
            tars[shard.bucket] += shard.bytes
    rows: list[list[Cell]] = [
        [
            bucket.replace("x", " x "),
            samples[bucket],
            share(samples[bucket], manifest.samples),
            shards[bucket],
            Right(size(tars[bucket])),
            bar(samples[bucket], manifest.samples),
        ]
        for bucket in sorted(samples, key=lambda each: [int(side) for side in each.split("x")])
    ]
    if not rows:
        return []
    head = ("width x height", "samples", "share", "shards", "tars", "")
    return [heading("Buckets"), table(head, rows, named=True)]
