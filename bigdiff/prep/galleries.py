"""Pictures to judge by eye: kept, refused, on either side of a threshold, and duplicates beside what stays for them.

What was taken down is never shown. The number of pictures is bounded, and so is the page.
"""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import duckdb

from bigdiff.config.errors import RunError
from bigdiff.data.manifest import Manifest
from bigdiff.prep import stored
from bigdiff.prep.causes import Cause
from bigdiff.prep.decontaminate import CAPTION, PICTURE
from bigdiff.prep.layout import Layout
from bigdiff.prep.page import CAPTION_SHOWN, Markup, gallery, heading, note, number, picture, section
from bigdiff.prep.picture import STORED_PIXELS, Rejected, decode
from bigdiff.prep.query import quoted, run
from bigdiff.prep.rules import Bound
from bigdiff.prep.stored import Sample
from bigdiff.prep.verify import thumbnail

KEPT: Final = 28
BORDERLINE: Final = 84  # in all
REFUSED: Final = 48
PAIRS: Final = 6  # a cause
EVALUATED: Final = 8  # a cause
_EACH: Final = 6  # at most, of a side of a threshold or of a cause
_JOINED: Final = "\N{NO-BREAK SPACE}"  # a score's name and its value stay on one line
_NUMBERS: Final = {*stored.OURS} - {*stored.LANGUAGES}
_DUPLICATE, _EVALUATION = "duplicate", "evaluation"  # steps of the plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """A rule that compares a score with a number, and whether what it refuses was stored."""

    rule: str
    bound: Bound
    both_sides: bool


def kept(layout: Layout, manifest: Manifest) -> Markup:
    """The first samples of the first shard, or of each bucket's first: the order is random already."""
    first = {shard.bucket: shard.name for shard in reversed(manifest.shards)}
    limit = max(1, KEPT // len(first))
    scores = {*stored.OURS, *stored.THEIRS}
    figures: list[str] = []
    for bucket in sorted(first)[:KEPT]:
        for key, members in _members(layout.output / f"{first[bucket]}.tar", limit).items():
            facts = json.loads(members["json"])
            known = {name: value for name, value in facts.items() if name in scores and value is not None}
            small = _small(members[manifest.contract["format"]], key)
            figures.append(picture(small, facts["caption"], bucket.replace("x", " x "), _said(known)))
    which = "of each bucket's first shard" if any(first) else "of the first shard"
    return section("Kept", [note(f"The first samples {which}: their order is random."), gallery(figures)])


def _members(file: Path, samples: int) -> dict[str, dict[str, bytes]]:
    """The first samples of a tar: their members' contents by extension, by key."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(file, "r:") as tar:
        for member in islice(tar, 3 * samples):
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            found.setdefault(key, {})[extension] = content.read()
    return found


def borderline(
    base: duckdb.DuckDBPyConnection, layout: Layout, columns: tuple[str, ...], thresholds: Sequence[Threshold]
) -> Markup:
    """The samples nearest to each threshold, on both of its sides where both were stored."""
    known = [each for each in thresholds if each.bound.column in columns]
    sides = sum(1 + each.both_sides for each in known)
    limit = max(1, min(_EACH, BORDERLINE // max(sides, 1)))
    parts: list[str] = []
    for each in known[:BORDERLINE]:
        for refused in (False, True)[: 1 + each.both_sides]:
            rows = _nearest(base, each.bound, refused, limit)
            found = stored.samples(base, layout, rows, columns)
            figures = [_nearby(found[row], each.bound.column) for row in rows]
            if figures:
                title = f"{each.rule}: {'just refused' if refused else 'just kept'}"
                parts += [heading(title), gallery(figures)]
    said = "The stored samples nearest to each threshold, whatever the other rules say of them."
    if not all(each.both_sides for each in known):
        said += " What the metadata's rules refuse was never downloaded."
    return section("Borderline", [note(said), *parts] if parts else [])


def _nearest(base: duckdb.DuckDBPyConnection, bound: Bound, refused: bool, limit: int) -> list[int]:
    score, value = f"{bound.column}::DOUBLE", f"{bound.value!r}::DOUBLE"
    passes = f"{score} {bound.comparison} {value}"
    found = run(
        base,
        f"SELECT row FROM facts WHERE step IS DISTINCT FROM 'takedown' AND isfinite({score}) "
        f"AND {'NOT ' if refused else ''}({passes}) ORDER BY abs({score} - {value}), row LIMIT {limit}",
        "finding pictures",
    )
    return [int(row) for (row,) in found]


def refused(
    base: duckdb.DuckDBPyConnection, layout: Layout, columns: tuple[str, ...], causes: Sequence[Cause]
) -> Markup:
    """What could be decoded and is not in the set, by cause; duplicates and evaluation pictures have their own."""
    mine = [each for each in causes if each.shown and each.step not in (_DUPLICATE, _EVALUATION)][:REFUSED]
    limit = max(1, min(_EACH, REFUSED // max(len(mine), 1)))
    captions = _captions(base, layout, [row for each in mine if each.pictures for row in each.shown[:limit]])
    parts: list[str] = []
    for each in mine:
        rows = each.shown[:limit]
        if each.pictures:
            figures = [
                picture(small, captions.get(row, "")) for row, small in zip(rows, each.pictures[:limit], strict=True)
            ]
        else:
            decided = each.cause.partition(" ")[0]  # the score, where that is the cause
            figures = [
                _shown(
                    sample,
                    f"{decided} {number(sample.scores[decided])}" if decided in _NUMBERS & {*sample.scores} else "",
                )
                for sample in stored.samples(base, layout, rows, columns).values()
            ]
        parts += [heading(f"{each.cause}: {each.rows:,}"), gallery(figures)]
    return section("Refused", [note("The first of each cause that could be decoded."), *parts] if parts else [])


def pairs(base: duckdb.DuckDBPyConnection, layout: Layout, columns: tuple[str, ...]) -> Markup:
    """Duplicates beside what stays for them: those that differ most come first."""
    apart = "bit_count(xor(one.phash, other.phash))" if "phash" in columns else "NULL"
    found = run(
        base,
        f"""SELECT cause, row, of_row, apart FROM (
            SELECT gone.cause, gone.row, gone.of_row, {apart} AS apart,
                row_number() OVER (PARTITION BY gone.cause ORDER BY apart DESC NULLS LAST, gone.row) AS place
            FROM read_parquet({quoted(layout.dropped)}) AS gone
            JOIN facts AS one ON one.row = gone.row JOIN facts AS other ON other.row = gone.of_row
            WHERE gone.step = '{_DUPLICATE}'
        ) WHERE place <= {PAIRS} ORDER BY cause, place""",
        "finding pairs",
    )
    shown = stored.samples(base, layout, [row for each in found for row in each[1:3]], columns)
    parts: list[str] = []
    for cause in sorted({each[0] for each in found}):
        both = []
        for _, row, of_row, bits in (each for each in found if each[0] == cause):
            distance = "" if bits is None else f", {bits} bits apart"
            both.append(_pair(_plain(shown[row], f"left out{distance}"), _plain(shown[of_row], "stays")))
        parts += [heading(cause), _pairs(both)]
    said = (
        "Left out, and beside it what stays in its place. Of each cause those whose hashes differ most. A copy of a "
        "picture that went itself lies beside what that one went for."
    )
    return section("Duplicates", [note(said), *parts] if parts else [])


def evaluated(base: duckdb.DuckDBPyConnection, layout: Layout, columns: tuple[str, ...], folder: str | None) -> Markup:
    """Samples that an evaluation would find again, beside the picture of `folder` or with the caption that they are."""
    found = run(
        base,
        f"SELECT cause, row, \"of\" FROM read_parquet({quoted(layout.dropped)}) WHERE step = '{_EVALUATION}' "
        f"QUALIFY row_number() OVER (PARTITION BY cause ORDER BY row) <= {EVALUATED} ORDER BY cause, row",
        "finding pictures",
    )
    shown = stored.samples(base, layout, [row for _, row, _ in found], columns)
    alike = [
        _pair(_plain(shown[row], "left out"), picture(_small((Path(folder) / of).read_bytes(), of), of, "evaluation"))
        for cause, row, of in found
        if cause == PICTURE and folder is not None
    ]
    said = [
        _plain(shown[row], facts=f"evaluation: {of}"[:CAPTION_SHOWN]) for cause, row, of in found if cause == CAPTION
    ]
    parts = []
    if alike:
        parts += [heading(PICTURE), _pairs(alike)]
    if said:
        parts += [heading(CAPTION), gallery(said)]
    return section("Found in the evaluation set", parts)


def _captions(base: duckdb.DuckDBPyConnection, layout: Layout, rows: Sequence[int]) -> dict[int, str]:
    """The metadata's captions of rows that were not stored."""
    if not rows:
        return {}
    listed = ", ".join(map(str, rows))
    query = f"SELECT row, caption FROM read_parquet({quoted(layout.selected)}) WHERE row IN ({listed})"
    return dict(run(base, query, "finding captions"))


def _shown(sample: Sample, strong: str = "") -> Markup:
    """A stored sample with all its scores."""
    return picture(_small(sample.content, str(sample.row)), sample.caption, strong, _said(sample.scores))


def _nearby(sample: Sample, score: str) -> Markup:
    """A stored sample with one score, in digits enough to see on which side of a threshold it lies."""
    return _plain(sample, f"{score} {sample.scores[score]:.6g}")


def _plain(sample: Sample, strong: str = "", facts: str = "") -> Markup:
    """A stored sample without its scores."""
    return picture(_small(sample.content, str(sample.row)), sample.caption, strong, facts)


def _pair(one: str, other: str) -> str:
    return f'<div class="pair">{one}{other}</div>'


def _pairs(both: Sequence[str]) -> Markup:
    return Markup(f'<div class="pairs">{"".join(both)}</div>')


def _said(scores: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}{_JOINED}{number(value) if isinstance(value, (int, float)) else value}"
        for name, value in scores.items()
    )


def _small(content: bytes, which: str) -> bytes:
    try:
        return thumbnail(decode(content, STORED_PIXELS))
    except Rejected as error:
        raise RunError(
            f"the stored picture {which} is damaged ({error.cause}): delete the folder, start again"
        ) from error
