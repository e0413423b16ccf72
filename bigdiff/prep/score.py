"""Scores for the samples of a job, once: each unit's land in a parquet of its own, and thresholds come later.

Scorers without a network run in the job's processes. Those with one run in a process a GPU, or in this one, where
torch uses all cores. Threads decode the next batches meanwhile, and make of each picture what CLIP is shown; a batch's
scores are computed while the GPU has the next batch.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bigdiff.config.errors import RunError
from bigdiff.config.scoring import ON_CLIP, Scorer, Scoring
from bigdiff.prep.layout import Layout
from bigdiff.prep.picture import STORED_PIXELS, Rejected, decode
from bigdiff.prep.scorers import loading
from bigdiff.prep.scorers.scorer import Batch, Bytes, Value
from bigdiff.runtime.files import replacing
from bigdiff.runtime.workers import Spread

NETWORKS: Final = (*ON_CLIP, "watermark")
_THREADS: Final = 16  # at most, that decode beside a network
_AHEAD: Final = 2  # batches that they have decoded before they are asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One unit to be scored."""

    output: Path
    unit: str
    scoring: str  # Scoring as JSON: what is loaded is kept under it


def score(layout: Layout, workers: Spread, scoring: Scoring) -> None:
    """Score every unit that has no scores.

    Raises:
        UsageError: when the weights of a scorer cannot be used.
        RunError: when a stored picture is damaged.
    """
    if not scoring.scorers and not scoring.embeddings:
        return
    written = json.dumps(asdict(scoring))
    units = sorted(path.stem for path in layout.samples.glob("*.parquet"))
    tasks = [Task(output=layout.output, unit=unit, scoring=written) for unit in units]
    if scoring.embeddings or any(scorer.kind in NETWORKS for scorer in scoring.scorers):
        with workers.on_devices() as devices:
            deque(devices.each(score_unit, tasks, "scoring"), maxlen=0)
    else:
        deque(workers.each(score_unit, tasks, "scoring"), maxlen=0)


def ready(scoring: Scoring) -> dict[str, str]:
    """The fingerprint of each scorer, by column, after its self-test: a job of weeks begins with sound scorers or not.

    Raises:
        UsageError: when weights cannot be used, or a self-test fails.
    """
    if not scoring.scorers and not scoring.embeddings:
        return {}
    scorers = _loaded(json.dumps(asdict(scoring)))
    scorers.self_test()
    return scorers.fingerprint


def score_unit(task: Task) -> str:
    """Score one unit, unless that is done; returns its name."""
    layout = Layout(task.output)
    final = layout.scores / f"{task.unit}.parquet"
    if final.exists():
        return task.unit
    scorers = _loaded(task.scoring)
    needed = ["row", "key", "caption", "offset", "length"]
    samples = pq.read_table(layout.samples / f"{task.unit}.parquet", columns=needed)
    found: dict[str, list[Value]] = {name: [] for name in scorers.columns}
    embeddings: list[npt.NDArray[np.float16]] = []
    for batch in _batches(layout.pictures / task.unit, samples.to_pylist(), scorers):
        for name, values in scorers.of(batch, len(embeddings)).items():
            found[name].extend(values)
        if scorers.embeddings:
            embeddings.extend(batch.image_features.astype(np.float16))
    if scorers.embeddings:
        with replacing(layout.embeddings / f"{task.unit}.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, np.stack(embeddings) if embeddings else np.empty((0, 0), np.float16), allow_pickle=False)
    scores = {name: pa.array(found[name], kind) for name, kind in scorers.columns.items()}
    with replacing(final) as temporary:
        pq.write_table(pa.table({"row": samples["row"], **scores}), temporary)
    return task.unit


@cache
def _loaded(scoring: str) -> loading.Scorers:
    content = json.loads(scoring)
    scorers = [Scorer(**{**each, "languages": tuple(each["languages"])}) for each in content.pop("scorers")]
    return loading.load(Scoring(scorers=scorers, **content))


def threads() -> int:
    """That decode beside a network."""
    return max(1, min(_THREADS, (os.cpu_count() or 1) - 1))


def _batches(file: Path, samples: Sequence[dict[str, Any]], scorers: loading.Scorers) -> Iterator[Batch]:
    """In order; while one batch is with the caller, CLIP computes the next and those behind it are decoded."""
    with file.open("rb") as source, ThreadPoolExecutor(threads()) as pool:

        def decoded(sample: dict[str, Any]) -> tuple[Image.Image, Bytes | None]:
            content = os.pread(source.fileno(), sample["length"], sample["offset"])
            try:
                picture = decode(content, STORED_PIXELS)
            except Rejected as error:
                raise RunError(
                    f"{file.resolve()} is damaged: picture {sample['key']} at offset {sample['offset']} ({error.cause})"
                ) from error
            return picture, scorers.seen(picture)

        left = deque(samples[begin : begin + scorers.batch] for begin in range(0, len(samples), scorers.batch))
        ahead: deque[tuple[Sequence[dict[str, Any]], list[Future[tuple[Image.Image, Bytes | None]]]]] = deque()
        begun: deque[Batch] = deque()
        while left or ahead:
            while left and len(ahead) <= _AHEAD:
                part = left.popleft()
                ahead.append((part, [pool.submit(decoded, one) for one in part]))
            part, futures = ahead.popleft()
            pictures, seen = zip(*(future.result() for future in futures), strict=True)
            begun.append(scorers.begun(pictures, [sample["caption"] for sample in part], seen))
            if len(begun) > 1:
                yield begun.popleft()
        yield from begun
