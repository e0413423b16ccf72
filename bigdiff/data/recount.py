"""The samples of a run, computed again from its course and held against the digests in its ledgers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from tqdm import tqdm

from bigdiff.data import ledger
from bigdiff.data.course import Course
from bigdiff.data.history import NAMED, Fault, Stretch, extents
from bigdiff.data.order import Ints

Runs = npt.NDArray[np.void]  # of EXTENT
Sample = tuple[int, int, int]  # source, shard, row


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """What could not be used at a position: the sample of the order, then each substitute that was no better."""

    position: int
    rank: int
    file: Path  # the ledger that says so
    samples: tuple[Sample, ...]
    reasons: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class Recount:
    """What came out of computing a history again."""

    faults: list[Fault] = field(default_factory=list)
    wrong: int = 0  # runs whose digest is another


def lost_samples(stretch: Stretch, total: int) -> list[Lost]:
    """The substitutions of a stretch, by position."""
    found = []
    for pages in stretch.start.pages:
        steps = pages.substitutions["position"].astype(np.int64) // total
        rows = pages.substitutions[(steps >= stretch.begin) & (steps < stretch.end)]
        cuts = np.flatnonzero(np.diff(rows["position"].astype(np.int64))) + 1
        for group in np.split(rows, cuts) if len(rows) else []:
            found.append(
                Lost(
                    position=int(group["position"][0]),
                    rank=pages.header.rank,
                    file=pages.file,
                    samples=tuple((int(one["source"]), int(one["shard"]), int(one["row"])) for one in group),
                    reasons=tuple(pages.reasons.get(int(one["reason"]), "other") for one in group),
                )
            )
    return sorted(found, key=lambda lost: lost.position)


def recount(stretches: Sequence[Stretch], course: Course, total: int, quiet: bool) -> Recount:
    """Compute every step of the history again; `quiet` shows no progress bar."""
    found = Recount()
    with tqdm(total=sum(stretch.end - stretch.begin for stretch in stretches), unit=" steps", disable=quiet) as bar:
        for stretch in stretches:
            lost = lost_samples(stretch, total)
            places = np.array([one.position for one in lost], np.int64)
            for runs in _by_step(extents(stretch)):
                step = int(runs["step"][0])
                if course.steps is not None and step >= course.steps:
                    said = f"step {step}: the sources give {course.steps} steps and no more"
                    _note(found.faults, Fault(kind="digest", sentence=f"{said}, yet {stretch.start.name} recorded it"))
                    break
                low, high = np.searchsorted(places, (step * total, (step + 1) * total)).tolist()
                samples = _really_read(course, step, total, lost[low:high], found)
                _compare(stretch, samples, runs, total, found)
                bar.update()
    return found


def _by_step(runs: Runs) -> Iterator[Runs]:
    runs = runs[np.argsort(runs["step"], kind="stable")]
    cuts = [0, *(np.flatnonzero(np.diff(runs["step"])) + 1).tolist(), len(runs)]
    return (runs[low:high] for low, high in pairwise(cuts) if low < high)


def _really_read(course: Course, step: int, total: int, lost: Sequence[Lost], found: Recount) -> Ints:
    """Source, shard and row of a global batch, int64 [3, total], with the substitutes in their places."""
    picks = course.locate(step, 0, total)
    samples = np.stack((picks.sources, picks.shards, picks.rows)).astype(np.int64, copy=False)
    original = samples.copy() if lost else samples
    for one in lost:
        at = one.position - step * total
        expected = [tuple(original[:, at].tolist())]
        expected += [course.substitute(one.position, attempt) for attempt in range(1, len(one.samples))]
        if expected != list(one.samples):
            where = f"step {step}: rank {one.rank}, position {one.position}: {one.file} says that {one.samples}"
            said = f"{where} could not be used, the order has {tuple(expected)} there"
            _note(found.faults, Fault(kind="substitution", sentence=said))
        samples[:, at] = course.substitute(one.position, len(one.samples))
    return samples


def _compare(stretch: Stretch, samples: Ints, runs: Runs, total: int, found: Recount) -> None:
    for run in runs:
        begin, end = int(run["begin"]) - int(run["step"]) * total, int(run["end"]) - int(run["step"]) * total
        if not 0 <= begin < end <= total:
            continue  # of another step: the coverage names it
        if run_digest(samples[:, begin:end], int(run["batches"])) == int(run["digest"]):
            continue
        found.wrong += 1
        file = ledger.file_name(int(run["rank"]), stretch.start.header.size)
        said = f"step {run['step']}: rank {run['rank']} read other samples at positions {run['begin']} to "
        said += f"{run['end'] - 1} than the order has there, says {stretch.start.pages[0].file.parent / file}"
        _note(found.faults, Fault(kind="digest", sentence=said))


def run_digest(samples: Ints, batches: int) -> int:
    """The digest of a run of `batches` equal micro-batches, from the int64 array [3, samples] of what they are."""
    pieces = np.ascontiguousarray(samples.reshape(3, batches, -1).transpose(1, 0, 2)).astype("<i8", copy=False)
    raw = memoryview(pieces.tobytes())
    size = len(raw) // batches
    return ledger.combined([xxhash.xxh3_64_intdigest(raw[at : at + size]) for at in range(0, len(raw), size)])


def _note(faults: list[Fault], fault: Fault) -> None:
    if sum(one.kind == fault.kind for one in faults) < NAMED:
        faults.append(fault)
