"""What the weights of a run have seen: which starts' records count, and whether each position stands in them once.

A start that resumed at step s takes the place of everything its parent recorded from s on: those steps were lost with
the crash and done again. The parent is the start before it, or the one that the header names. So the history is a
chain of stretches of steps, each of one start, and only their records are held against the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from bigdiff.config.errors import UsageError
from bigdiff.data import ledger
from bigdiff.data.ledger import Header
from bigdiff.data.pages import Pages, Skip, read

Kind = Literal["missing", "gap", "duplicate", "overlap", "stray", "header", "damaged", "digest", "substitution"]
NAMED: Final = 20  # faults of a kind that get a sentence; the rest are counted

# a run of a stretch: [begin, end) are positions
EXTENT: Final = np.dtype(
    [("step", "i8"), ("begin", "i8"), ("end", "i8"), ("rank", "i8"), ("batches", "i8"), ("digest", "u8")]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that keeps a run from being proven."""

    kind: Kind
    sentence: str  # names step, rank and file


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One start of the run: the files of its ranks."""

    name: str
    pages: tuple[Pages, ...]  # of the ranks that have a file, by rank

    @property
    def header(self) -> Header:
        """Of the first rank; `chain` reports where the others differ."""
        return self.pages[0].header

    @property
    def missing_ranks(self) -> list[int]:
        """Ranks that have no file."""
        return sorted(set(range(self.header.size)) - {pages.header.rank for pages in self.pages})

    @property
    def recorded(self) -> npt.NDArray[np.int64]:
        """The steps of which at least one rank has a record, ascending."""
        return np.unique(np.concatenate([pages.steps for pages in self.pages]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """The steps [begin, end) of the history, which `start` did."""

    start: Start
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Whether each position of the history is recorded once."""

    faults: tuple[Fault, ...]
    missing: int  # positions
    duplicates: int  # positions recorded again by the same rank
    overlaps: int  # positions recorded again by another rank


def read_starts(run: Path, quiet: bool = True) -> list[Start]:
    """All starts of a run that wrote a header, in the order of time; `quiet` shows no progress bar.

    Raises:
        UsageError: when the run has no audit, or a file in it is no ledger.
    """
    folders = [run / ledger.FOLDER / name for name in ledger.starts(run)]
    files = [sorted(folder.glob("rank-*.ledger")) for folder in folders]
    found = []
    with tqdm(total=sum(map(len, files)), unit=" files", disable=quiet) as bar:
        for folder, mine in zip(folders, files, strict=True):
            pages = []
            for file in mine:
                page = read(file)
                pages += [page] if page is not None else []
                bar.update()
            if pages:
                found.append(Start(name=folder.name, pages=tuple(sorted(pages, key=lambda one: one.header.rank))))
    if not found:
        raise UsageError(f"{run} has no audit: train with data.audit=true to keep one")
    return found


def chain(starts: Sequence[Start], until: int | None = None) -> tuple[list[Stretch], list[Fault]]:
    """The stretches of [0, until), or up to the last step that every rank of the last start recorded."""
    by_name = {start.name: number for number, start in enumerate(starts)}
    faults = header_faults(starts)
    stretches: list[Stretch] = []
    number, upper = len(starts) - 1, last_step(starts[-1]) if until is None else until
    while True:
        start = starts[number]
        if start.header.step < upper:
            stretches.append(Stretch(start=start, begin=start.header.step, end=upper))
            upper = start.header.step
        if not upper or not number:
            break
        parent = by_name.get(start.header.parent, -1) if start.header.parent else number - 1
        if not 0 <= parent < number:
            named = f"start {start.name} continues start {start.header.parent}, which is not in the audit"
            faults.append(Fault(kind="header", sentence=named))
            break
        number = parent
    stretches.reverse()
    if upper:
        files = starts[number].pages[0].file.parent
        faults.append(Fault(kind="missing", sentence=f"no start has steps 0 to {upper - 1}: {files} begins at {upper}"))
    return stretches, faults


def last_step(start: Start) -> int:
    """The step behind the last one that all ranks of the last start recorded.

    A kill may come between two ranks' records of a step, but no rank goes on without the others' gradients: files
    whose ends are more than a step apart have lost records, which `cover` will miss.
    """
    ends = [pages.end + (pages.ending == "damaged") for pages in start.pages]  # it held at least one more
    return max(ends) if start.missing_ranks or max(ends) - min(ends) > 1 else min(ends)


def skips(stretches: Sequence[Stretch]) -> list[Skip]:
    """The steps of a history that moved no weights, ascending and apart, neighbours of one reason joined.

    A record counts where its last step does, in whose course it was written; going back to a checkpoint takes along
    what was skipped behind it.
    """
    found: list[Skip] = []
    for stretch in stretches:
        own = {skip for pages in stretch.start.pages for skip in pages.skips if stretch.begin < skip.end <= stretch.end}
        for skip in sorted(own, key=lambda one: (one.end, one.begin)):
            found = [replace(one, end=min(one.end, skip.begin)) for one in found if one.begin < skip.begin]
            last = found[-1] if found else None
            if last and (last.end, last.reason) == (skip.begin, skip.reason):
                found[-1] = replace(last, end=skip.end)
            else:
                found.append(skip)
    return found


def header_faults(starts: Sequence[Start]) -> list[Fault]:
    """Where a header is not the one of the other ranks, or its course not the one of the first start."""
    faults = []
    first = starts[0].header
    for start in starts:
        for pages in start.pages:
            header = pages.header
            if (header.start, pages.file.name) != (start.name, ledger.file_name(header.rank, header.size)):
                faults.append(_header_fault(pages, "is not where its header says"))
            if header.fingerprint != first.fingerprint:
                said = f"has the fingerprint {header.fingerprint[:12]}, the first start had {first.fingerprint[:12]}"
                faults.append(_header_fault(pages, f"{said}: it read another order"))
            elif _course(header) != _course(first):
                faults.append(_header_fault(pages, "describes another course than the first start's header"))
            if (header.size, header.step) != (start.header.size, start.header.step):
                said = f"says {header.size} ranks from step {header.step}, rank {start.header.rank} says"
                faults.append(_header_fault(pages, f"{said} {start.header.size} from {start.header.step}"))
    return faults


def _header_fault(pages: Pages, sentence: str) -> Fault:
    return Fault(
        kind="header", sentence=f"rank {pages.header.rank} at step {pages.header.step}: {pages.file} {sentence}"
    )


def _course(header: Header) -> tuple[object, ...]:
    # a set may move between starts; its manifest's sha256 may not change
    inputs = tuple((item.manifest, repr(item.share)) for item in header.inputs)
    return header.total, header.seed, header.window, header.lanes, header.kind, inputs


def extents(stretch: Stretch) -> npt.NDArray[np.void]:
    """The runs of a stretch, of all ranks, by position: EXTENT [runs]."""
    parts = []
    for pages in stretch.start.pages:
        steps = pages.steps[pages.owners]
        chosen = np.flatnonzero((steps >= stretch.begin) & (steps < stretch.end))
        runs = pages.runs[chosen]
        part = np.empty(len(chosen), EXTENT)
        part["step"], part["begin"], part["rank"] = steps[chosen], runs["position"], pages.header.rank
        part["end"] = part["begin"] + runs["micro"].astype(np.int64) * runs["batches"]
        part["batches"], part["digest"] = runs["batches"], runs["digest"]
        parts.append(part)
    joined = np.concatenate(parts)
    return joined[np.lexsort((joined["rank"], joined["begin"]))]


def cover(stretch: Stretch, total: int) -> Coverage:
    """Hold the runs of a stretch against the positions [begin x total, end x total)."""
    runs = extents(stretch)
    absent, absences = _absent_records(stretch)
    faults = [*_damage(stretch), *absences, *_strays(stretch, runs, total)]
    inside = (runs["begin"] // total == runs["step"]) & ((runs["end"] - 1) // total == runs["step"])
    runs = runs[inside & (runs["end"] > runs["begin"])]
    bounds = stretch.begin * total, stretch.end * total
    reach = np.maximum.accumulate(np.concatenate((bounds[:1], runs["end"])))
    begins = np.concatenate((runs["begin"], bounds[1:]))
    holes = np.flatnonzero(begins > reach)
    for hole in holes[~np.isin(reach[holes] // total, absent)][:NAMED].tolist():
        low, high = int(reach[hole]), int(begins[hole])
        rank = low % total * stretch.start.header.size // total
        said = f"step {low // total}: rank {rank} has a record and positions {low} to {high - 1} are not in it"
        faults.append(Fault(kind="gap", sentence=f"{said}, in {_file(stretch, rank)}"))
    again = np.minimum(reach[:-1], runs["end"]) - runs["begin"]
    twice = np.flatnonzero(again > 0)
    holder = np.maximum.accumulate(np.where(runs["end"] > reach[:-1], np.arange(len(runs)), 0))  # of the reach, so far
    same = runs["rank"][holder[twice - 1]] == runs["rank"][twice]
    faults += _repeats(stretch, runs, holder, twice)
    return Coverage(
        faults=tuple(faults),
        missing=int((begins - reach)[holes].sum()),
        duplicates=int(again[twice[same]].sum()),
        overlaps=int(again[twice[~same]].sum()),
    )


def _file(stretch: Stretch, rank: int) -> Path:
    return stretch.start.pages[0].file.with_name(ledger.file_name(rank, stretch.start.header.size))


def _absent_records(stretch: Stretch) -> tuple[npt.NDArray[np.int64], list[Fault]]:
    """The steps that some rank did not record, and who."""
    wanted = np.arange(stretch.begin, stretch.end)
    by_rank = {pages.header.rank: pages for pages in stretch.start.pages}
    absent, faults = [wanted[:0]], []
    for rank in range(stretch.start.header.size):
        pages = by_rank.get(rank)
        lost = wanted if pages is None else np.setdiff1d(wanted, pages.steps)
        if not len(lost):
            continue
        absent.append(lost)
        file = _file(stretch, rank)
        why = "does not exist" if pages is None else f"has no record of {len(lost)} of the steps to {int(lost[-1])}"
        faults.append(Fault(kind="missing", sentence=f"step {int(lost[0])}: rank {rank} is missing: {file} {why}"))
    return np.unique(np.concatenate(absent)), faults


def _damage(stretch: Stretch) -> list[Fault]:
    """Files that go on behind what can be read, where that may belong to the stretch."""
    return [
        Fault(
            kind="damaged",
            sentence=f"step {pages.end}: rank {pages.header.rank}: {pages.file} is damaged at byte {pages.readable}",
        )
        for pages in stretch.start.pages
        if pages.ending == "damaged" and pages.end < stretch.end
    ]


def _strays(stretch: Stretch, runs: npt.NDArray[np.void], total: int) -> list[Fault]:
    wrong = (runs["begin"] // total != runs["step"]) | ((runs["end"] - 1) // total != runs["step"])
    return [
        Fault(
            kind="stray",
            sentence=f"step {run['step']}: rank {run['rank']} recorded positions {run['begin']} to {run['end'] - 1} of "
            f"another step in {_file(stretch, int(run['rank']))}",
        )
        for run in runs[wrong][:NAMED]
    ]


def _repeats(
    stretch: Stretch, runs: npt.NDArray[np.void], holder: npt.NDArray[np.int64], twice: npt.NDArray[np.int64]
) -> list[Fault]:
    faults = []
    for number in twice[:NAMED].tolist():
        run, other = runs[number], runs[holder[number - 1]]
        ranks = int(other["rank"]), int(run["rank"])
        low, high = int(run["begin"]), int(min(run["end"], other["end"])) - 1
        same = ranks[0] == ranks[1]
        who = f"rank {ranks[1]} recorded" if same else f"ranks {ranks[0]} and {ranks[1]} both recorded"
        file = _file(stretch, ranks[1])
        sentence = f"step {run['step']}: {who} positions {low} to {high}{' twice' if same else ''}, in {file}"
        faults.append(Fault(kind="duplicate" if same else "overlap", sentence=sentence))
    return faults
