"""From samples to shards, whoever made the samples: score, decide, pack."""

from pathlib import Path

from bigdiff.config.dedup import Dedup
from bigdiff.config.scoring import Scoring
from bigdiff.data.manifest import Shard
from bigdiff.prep import decontaminate, pack, score
from bigdiff.prep.layout import Layout
from bigdiff.prep.picture import STORED_PIXELS
from bigdiff.prep.plan import Choice, plan
from bigdiff.runtime.workers import Spread


def assemble(layout: Layout, workers: Spread, choice: Choice, unscored: Scoring, extension: str) -> tuple[Shard, ...]:
    """The shards of the job's samples, whose pictures' members end with `extension`.

    `unscored` are the scorers of `choice.scoring` whose scores the samples do not have yet.

    Raises:
        RunError: when no sample is left, or a stored picture is damaged.
    """
    score.score(layout, workers, unscored)
    decided = plan(layout, choice, _pictures(layout, workers, choice))
    tasks = [
        pack.Task(output=layout.output, number=number, format=extension, bucket=bucket)
        for number, bucket in enumerate(decided.shards)
    ]
    return tuple(workers.each(pack.write_shard, tasks, "packing"))


def evaluation(dedup: Dedup) -> dict[str, str]:
    """Checksums of what samples are compared with to keep an evaluation clean, by setting; empty without.

    Raises:
        UsageError: when a file or folder is not there.
    """
    return decontaminate.fingerprint(_path(dedup.evaluation_pictures), _path(dedup.evaluation_captions))


def _pictures(layout: Layout, workers: Spread, choice: Choice) -> decontaminate.Pictures | None:
    folder = choice.dedup.evaluation_pictures
    if folder is None or layout.plan.exists():
        return None
    return decontaminate.read(Path(folder), choice.fit, STORED_PIXELS, workers)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
