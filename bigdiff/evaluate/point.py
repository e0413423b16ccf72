"""The numbers of one set of pictures: FID, CLIP-SCORE, CMMD, precision and recall, from what the networks saw."""

from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.config.evaluation import FEATURES
from bigdiff.evaluate import blocks
from bigdiff.evaluate.clip_score import clip_scores
from bigdiff.evaluate.cmmd import cmmd
from bigdiff.evaluate.frechet import Gaussian, squared_distance
from bigdiff.evaluate.networks import CMMD, COSINE, INCEPTION
from bigdiff.evaluate.precision_recall import precision_recall
from bigdiff.evaluate.reference import Reference
from bigdiff.runtime.files import replacing
from bigdiff.runtime.world import World

TAGS = ("fid", "clip_score", "cmmd", "precision", "recall")  # as eval/... in TensorBoard


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What was computed; the rest is None."""

    guidance: float | None  # None: the pictures are not drawn here, or without guidance
    images: int
    fid: float | None = None
    clip_score: float | None = None  # mean of 2.5 max(cos, 0)
    clip_cosine: float | None = None  # mean
    cmmd: float | None = None
    precision: float | None = None
    recall: float | None = None
    singular: bool = False  # FID of no more pictures than features, here or in the real set

    @property
    def tags(self) -> dict[str, float]:
        """Tags and values for TensorBoard."""
        values = asdict(self)
        return {f"eval/{name}": values[name] for name in TAGS if values[name] is not None}


def judge(folder: Path, names: tuple[str, ...], reference: Reference | None, world: World, point: Point) -> Point:
    """`point` with its numbers, from the blocks in `folder` of its `images` pictures; collective.

    `names` are the features that the blocks hold. The numbers are rank 0's alone to know; the others get `point` back.
    """
    spans = blocks.cut(point.images)
    world.barrier()  # all blocks are there
    drawn = blocks.gaussian(folder, INCEPTION, spans, world) if INCEPTION in names and reference else None
    if not world.first:
        return point
    found = asdict(point)
    if drawn is not None and reference is not None and reference.gaussian is not None:
        found |= _against(folder, spans, drawn, reference, world)
    if CMMD in names and reference is not None:
        real = reference.features(CMMD)
        if real is not None:
            mine = blocks.read(folder, CMMD, spans)
            found["cmmd"] = cmmd(real.to(world.device), mine.to(world.device))
    if COSINE in names:
        cosine = blocks.read(folder, COSINE, spans)
        found["clip_cosine"], found["clip_score"] = float(cosine.mean()), float(clip_scores(cosine).mean())
    return Point(**found)


def _against(
    folder: Path, spans: list[tuple[int, int]], drawn: Gaussian, reference: Reference, world: World
) -> dict[str, float | bool]:
    """FID, precision and recall."""
    assert reference.gaussian is not None, "checked by the caller"
    counts = [count for count in (drawn.count, reference.gaussian.count) if count is not None]
    found: dict[str, float | bool] = {
        "fid": squared_distance(reference.gaussian, drawn),
        "singular": min(counts) <= FEATURES,
    }
    real = reference.features(INCEPTION)
    if real is not None:
        mine = blocks.read(folder, INCEPTION, spans)
        shares = precision_recall(real.to(world.device), mine.to(world.device))
        found |= {"precision": shares.precision, "recall": shares.recall}
    return found


def write_scores(file: Path, folder: Path, images: int, captions: list[str]) -> None:
    """The CLIP-SCORE of each picture as parquet: index, prompt, clip_cosine, clip_score."""
    cosine = blocks.read(folder, COSINE, blocks.cut(images))
    table = {
        "index": pa.array(range(images), pa.int64()),
        "prompt": pa.array(captions[:images], pa.string()),
        "clip_cosine": pa.array(cosine.numpy()),
        "clip_score": pa.array(clip_scores(cosine).numpy()),
    }
    with replacing(file) as temporary:
        pq.write_table(pa.table(table), temporary)
