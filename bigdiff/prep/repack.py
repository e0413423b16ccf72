"""One image set out of another: other thresholds, duplicates and taken-down samples gone, without fetching anything.

Scores that the old set has of the same scorers are taken over; only new ones are computed.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq

from bigdiff.config.errors import UsageError
from bigdiff.config.repack import Repack, Shards
from bigdiff.config.scoring import only
from bigdiff.data import manifest
from bigdiff.data.damage import read_tombstones
from bigdiff.data.manifest import Manifest
from bigdiff.prep import adopt, report
from bigdiff.prep.assemble import assemble, evaluation
from bigdiff.prep.claim import Outcome, carry_out
from bigdiff.prep.layout import Layout
from bigdiff.prep.plan import CLUSTER_SIZE, Choice
from bigdiff.prep.provenance import provenance
from bigdiff.prep.rules import Rule
from bigdiff.prep.score import ready
from bigdiff.prep.scorers.scorer import column
from bigdiff.runtime.workers import Spread


def repack(settings: Repack, images: Path, output: Path, workers: Spread, say: Callable[[str], None]) -> Outcome:
    """Make the image set `output` of the samples of `images`, or continue it.

    Raises:
        UsageError: when `images` is no finished set of build_shards.py, or `output` holds something else.
        RunError: when nothing is left, or a shard of `images` is damaged.
    """
    old = adopt.open_set(images)
    if images.resolve() == output.resolve():
        raise UsageError(f"--images and --output are both {images}: name another folder")
    takedown = read_tombstones(settings.pack.takedown)
    scorers = ready(settings.score)
    made_from = provenance(
        inputs={"images": manifest.fingerprint(images), **evaluation(settings.dedup)},
        settings=asdict(settings),
        takedown=takedown,
        scorers=scorers,
    )
    layout = Layout(output)
    stands_for = _stands_for(settings.pack, images, old)
    scored: dict[str, str] = old.lineage.get("scored", {})
    wanted = {column(one.kind): scorers[column(one.kind)] for one in settings.score.scorers}
    fresh = [one for one in settings.score.scorers if scored.get(column(one.kind)) != wanted[column(one.kind)]]

    def job() -> Manifest:
        say(f"taking over {old.samples:,} samples of {images}")
        choice = Choice(
            samples_per_shard=settings.pack.samples_per_shard,
            fit=adopt.fit(old),
            takedown=takedown,
            scoring=settings.score,
            dedup=settings.dedup,
            rules=stands_for,
        )
        tasks = adopt.tasks(output, images, old, without=tuple(column(one.kind) for one in fresh))
        deque(workers.each(adopt.adopt, tasks, "taking over"), maxlen=0)
        packed = assemble(layout, workers, choice, only(settings.score, fresh), old.contract["format"])
        lineage = {**made_from, "scored": {**scored, **wanted}, "before": old.lineage}
        finished = Manifest(kind="images", shards=packed, contract=old.contract, lineage=lineage)
        report.write(layout, None, choice, finished)
        manifest.write(layout.output, finished)
        return finished

    return carry_out(layout, made_from, job)


def _stands_for(pack: Shards, images: Path, old: Manifest) -> tuple[Rule, ...]:
    """The rules on how many samples one stands for."""
    asked = {">=": ("cluster_size_at_least", pack.cluster_size_at_least)}
    asked |= {"<": ("cluster_size_below", pack.cluster_size_below)}
    found = tuple(
        Rule(
            name=f"{CLUSTER_SIZE} {sign} {value}",
            sql=f"COALESCE({CLUSTER_SIZE} {sign} {value}, FALSE)",
            columns=(CLUSTER_SIZE,),
            setting=f"pack.{setting}",
        )
        for sign, (setting, value) in asked.items()
        if value is not None
    )
    index = images / f"{old.shards[0].name}{old.index}"
    if found and CLUSTER_SIZE not in pq.read_schema(index).names:
        raise UsageError(f"{index} has no column {CLUSTER_SIZE}, which {found[0].setting} asks for: leave that out")
    return found
