"""`report/index.html`: what became of every row, for a person to judge. One file, no script, nothing fetched.

It holds no time and no place, so that the same input gives the same bytes.
"""

from typing import Final

import duckdb
import yaml

from bigdiff.data.manifest import Manifest
from bigdiff.prep import causes, estimates, failures, funnel, galleries, originals, scored, sizes, stored
from bigdiff.prep.buckets import are_whole
from bigdiff.prep.galleries import Threshold
from bigdiff.prep.layout import Layout
from bigdiff.prep.page import (
    Markup,
    contents,
    details,
    document,
    note,
    section,
    share,
    size,
    title_line,
    totals,
)
from bigdiff.prep.plan import Choice, Decided
from bigdiff.prep.plan import read as read_plan
from bigdiff.prep.query import database, run
from bigdiff.prep.rules import Bound
from bigdiff.prep.scorers import thresholds
from bigdiff.prep.select import Selection
from bigdiff.runtime.files import write_bytes

_SETTINGS_SHOWN: Final = 100_000  # characters; a set of many files before this one has a long lineage
_TITLE: Final = "Image set report"


def write(layout: Layout, selection: Selection | None, choice: Choice, manifest: Manifest) -> None:
    """Write the page of a job whose shards are finished and whose work folder is still there.

    `selection` is None where the samples were taken over from another set; `choice` is what the plan was made with.

    Raises:
        RunError: when rows were lost without a cause, or a stored picture is damaged.
    """
    decided = read_plan(layout)
    with database(layout.work / "duckdb", None) as base:
        sections = _sections(base, layout, selection, choice, (decided, manifest))
    page = document(_TITLE, [_head(selection, decided, manifest), contents(sections), *sections])
    write_bytes(layout.report, page.encode())


def _sections(
    base: duckdb.DuckDBPyConnection,
    layout: Layout,
    selection: Selection | None,
    choice: Choice,
    made: tuple[Decided, Manifest],
) -> list[Markup]:
    decided, manifest = made
    found = causes.causes(base, layout)
    steps = funnel.lines(selection, decided, found, manifest)  # first: it refuses what does not add up
    columns = stored.gather(base, layout)
    own = thresholds.rules(choice.scoring)
    near = [Threshold(rule=rule.name, bound=rule.bound, both_sides=True) for rule in own if rule.bound is not None]
    for each in selection.sweeps if selection else ():
        bound = Bound(column=each.score, comparison=each.comparison, value=each.threshold)
        near.append(Threshold(rule=each.rule, bound=bound, both_sides=False))
    fetched = []
    if selection:
        fetched = [
            causes.written(found, "Not downloaded", failures.written(base, layout)),
            causes.written(found, "Downloaded and refused"),
        ]
    return [
        funnel.written(steps),
        _notes(base, layout, selection),
        *fetched,
        causes.written(found, "Stored and left out", tuple(note(f"{each}.") for each in decided.notes)),
        scored.of_metadata(selection),
        scored.of_samples(base, columns, own, with_metadata=selection is None),
        originals.written(base, columns, manifest),
        galleries.borderline(base, layout, columns, near),
        galleries.pairs(base, layout, columns),
        galleries.evaluated(base, layout, columns, choice.dedup.evaluation_pictures),
        galleries.kept(layout, manifest),
        galleries.refused(base, layout, columns, found),
        estimates.written(manifest),
        _settings(manifest),
    ]


def _head(selection: Selection | None, decided: Decided, manifest: Manifest) -> Markup:
    begun, what = (selection.rows, "rows of metadata") if selection else (decided.samples, "samples of the set before")
    side = manifest.contract["resolution"]
    stored_as = (
        f"samples in buckets of about {side} x {side}" if any(manifest.buckets) else f"samples of {side} x {side}"
    )
    if are_whole(manifest.contract):
        stored_as = f"samples, whole, the shorter side {side}"
    numbers = [
        (f"{begun:,}", what),
        (f"{manifest.samples:,}", stored_as),
        (share(manifest.samples, begun), "of them kept"),
        (f"{len(manifest.shards):,}", "shards"),
        (size(sum(shard.bytes for shard in manifest.shards)), "in tars"),
    ]
    return Markup(title_line(_TITLE) + note(f"What became of all {what}.") + totals(numbers))


def _notes(base: duckdb.DuckDBPyConnection, layout: Layout, selection: Selection | None) -> Markup:
    """How the metadata was read, and whether its sizes are those of the pictures."""
    if selection is None:
        return Markup()
    said = list(selection.notes)
    if {"width", "height"} <= {*selection.columns}:
        asked = sizes.fetched_query(layout.selected, layout.samples)
        pictures, straight, swapped = run(base, asked, "comparing sizes")[0]
        if pictures:
            said.append(sizes.fetched_note(pictures, sizes.Votes(straight=straight, swapped=swapped)))
    return Markup("".join(note(f"{each[0].upper()}{each[1:]}.") for each in said))


def _settings(manifest: Manifest) -> Markup:
    written = yaml.safe_dump(manifest.lineage, sort_keys=False, width=100)
    cut = note("Cut; all of it is in manifest.json.") if len(written) > _SETTINGS_SHOWN else ""
    return section("Settings", [details("What it is made from", written[:_SETTINGS_SHOWN]), cut])
