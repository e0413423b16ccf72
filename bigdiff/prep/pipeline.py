"""An image shard set from metadata, phase by phase; killed anywhere and started again, the same bytes come out.

Each phase writes its outcome under a temporary name, renames it, and is skipped when it is there. What the outcome
depends on (the input's checksums, the settings, the versions of what decodes and encodes) is written down first, and a
folder begun with anything else is refused.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from bigdiff.config.prep import DEFAULT_JPEG_QUALITY, Prep
from bigdiff.data import manifest
from bigdiff.data.damage import read_tombstones
from bigdiff.data.images import CENTRE
from bigdiff.data.manifest import Manifest
from bigdiff.prep import failures, report, spark, verify
from bigdiff.prep.assemble import assemble, evaluation
from bigdiff.prep.buckets import WHOLE, fit, name, shapes
from bigdiff.prep.claim import Outcome, carry_out
from bigdiff.prep.download import download
from bigdiff.prep.layout import Layout
from bigdiff.prep.plan import Choice
from bigdiff.prep.provenance import provenance
from bigdiff.prep.score import ready
from bigdiff.prep.scorers.scorer import column
from bigdiff.prep.select import Count, Histogram, Selection, inputs, select
from bigdiff.prep.sweep import Sweep
from bigdiff.runtime.files import sha256, write_json
from bigdiff.runtime.workers import Spread

_SOON: Final = 2.0  # seconds; what takes less needs no bar


def build(prep: Prep, source: Path, output: Path, workers: Spread, say: Callable[[str], None]) -> Outcome:
    """Make the image shard set `output` from the parquet file or folder `source`, or continue it.

    Selection and the plan run here; downloads, decoding, scoring and packing where `workers` are. The bytes are the
    same wherever that is.

    Raises:
        UsageError: for unusable input, or an output folder that holds something else.
        RunError: when a download fails or nothing is left.
    """
    spark.ready(prep.download, workers)
    takedown = read_tombstones(prep.pack.takedown)
    scorers = ready(prep.score)
    files = tqdm(inputs(source), desc="reading the input's checksums", unit="file", delay=_SOON, leave=False)
    made_from = provenance(
        inputs={**{file.name: sha256(file) for file in files}, **evaluation(prep.dedup)},
        settings=asdict(prep),
        takedown=takedown,
        scorers=scorers,
    )
    layout = Layout(output)

    def job() -> Manifest:
        say(f"selecting rows of {source}")
        selection = _selection(layout, prep, source)
        say(f"selected {selection.kept:,} of {selection.rows:,} rows; downloading")
        download(layout, prep.download, workers, say)
        choice = Choice(
            samples_per_shard=prep.pack.samples_per_shard,
            fit=fit(prep.pack),
            takedown=takedown,
            scoring=prep.score,
            dedup=prep.dedup,
        )
        say(failures.second_tries(layout) or "nothing had to be tried again")
        units = verify.units(layout, prep)
        for line in verify.by_part(layout, units, workers.each(verify.verify, units, "verifying")):
            say(line)
        packed = assemble(layout, workers, choice, prep.score, prep.pack.format)
        outcome = {"rows": selection.rows, "kept": selection.kept}
        scored = {column(one.kind): scorers[column(one.kind)] for one in prep.score.scorers}
        lineage = {**made_from, "scored": scored, "selection": outcome}
        finished = Manifest(kind="images", shards=packed, contract=contract(prep), lineage=lineage)
        report.write(layout, selection, choice, finished)
        manifest.write(layout.output, finished)
        return finished

    return carry_out(layout, made_from, job)


def _selection(layout: Layout, prep: Prep, source: Path) -> Selection:
    if layout.selection.exists():
        content = json.loads(layout.selection.read_text())
        counts = tuple(Count(**count) for count in content.pop("counts"))
        histograms = tuple(Histogram(**{**each, "counts": tuple(each["counts"])}) for each in content.pop("histograms"))
        sweeps = tuple(
            Sweep(**{**each, "at": tuple(each["at"]), "kept": tuple(each["kept"])}) for each in content.pop("sweeps")
        )
        columns, notes = tuple(content.pop("columns")), tuple(content.pop("notes"))
        return Selection(counts=counts, histograms=histograms, columns=columns, notes=notes, sweeps=sweeps, **content)
    selection = select(inputs(source), prep, layout.selected)
    write_json(layout.selection, asdict(selection))
    return selection


def contract(prep: Prep) -> dict[str, Any]:
    """What a reader may rely on."""
    quality = prep.pack.jpeg_quality or DEFAULT_JPEG_QUALITY
    several = prep.pack.bucket_step is not None
    cropped = "centre of the nearest aspect" if several else CENTRE
    return {
        "resolution": prep.pack.resolution,
        **({"buckets": [name(shape) for shape in shapes(prep.pack)]} if several else {}),
        "format": prep.pack.format,
        "quality": f"jpeg {quality}, 4:4:4" if prep.pack.format == "jpg" else "lossless",
        "pixel_range": "uint8 RGB, 0 to 255",
        "resize": "bicubic, antialiased (torch, uint8)",
        "crop": WHOLE if prep.pack.crop == WHOLE else cropped,
        "orientation": "applied",
        "transparency": "on white",
        "colour_profile": "not applied",
    }
