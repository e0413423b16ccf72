"""Is a run proven, and what did it do with one sample: the history of its starts held against its sets' order."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from bigdiff.config.errors import UsageError
from bigdiff.data import history, lookup, manifest
from bigdiff.data.course import Course
from bigdiff.data.history import Fault, Start, Stretch
from bigdiff.data.ledger import Header, Input
from bigdiff.data.lookup import Column, Sighting
from bigdiff.data.manifest import Manifest
from bigdiff.data.mixture import Source
from bigdiff.data.recount import Sample, lost_samples, recount


@dataclass(frozen=True, kw_only=True, slots=True)
class StartReport:
    """What became of one start."""

    start: str
    size: int  # processes
    resumed: int  # step
    recorded: int  # steps that at least one rank recorded
    counted: int  # of these, steps that the weights have seen
    torn: int  # files cut inside a record


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """What a source gave to steps that moved weights."""

    source: str
    samples: int
    passes: float  # over the whole source


@dataclass(frozen=True, kw_only=True, slots=True)
class SkipReport:
    """Steps [begin, end) that took their samples and moved no weights."""

    begin: int
    end: int
    samples: int
    reason: str

    @property
    def sentence(self) -> str:
        """For a person."""
        steps = f"step {self.begin}" if self.end == self.begin + 1 else f"steps {self.begin}-{self.end - 1}"
        return f"{steps} moved no weights: {self.reason}; their {self.samples} samples are not counted as trained on"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Whether the history is proven, and its figures. Counts are positions where nothing else is said."""

    proven: bool
    steps: int
    positions: int
    missing: int
    duplicates: int  # recorded again by the same rank
    overlaps: int  # recorded by two ranks
    wrong_digests: int | None  # records; None when the samples were not computed again
    redone_steps: int  # recorded by a start whose step was then lost and done again
    fingerprint: str
    starts: tuple[StartReport, ...]
    skipped: tuple[SkipReport, ...]  # part of the steps and positions, not of what the sources gave
    sources: tuple[SourceReport, ...]  # empty when the samples were not computed again
    substituted: dict[str, int]  # positions by reason
    faults: tuple[Fault, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A sample that was asked for, and what the history did with it."""

    source: str
    shard: str
    row: int
    sighting: Sighting


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Whether a key, URL or hash was trained on."""

    column: Column
    value: str
    found: tuple[Found, ...]  # more than one where several samples share the value
    unread: tuple[str, ...]  # index files that could not be searched

    @property
    def sentence(self) -> str:
        """For a person."""
        asked = f"{self.column} {self.value}"
        missed = f" ({len(self.unread)} index files could not be searched)" if self.unread else ""
        if not self.found:
            return f"never trained on: no sample of the run's sets has {asked}{missed}"
        steps = sorted(step for one in self.found for step in one.sighting.steps)
        replaced = sum(len(one.sighting.replaced) for one in self.found)
        beside = f", not used at {replaced} more" if replaced else ""
        idle = sorted((one.step, one.reason) for each in self.found for one in each.sighting.idle)
        if idle:
            shown = ", ".join(f"{step} ({reason})" for step, reason in idle[:20]) + (", ..." if len(idle) > 20 else "")
            beside += f", read at steps that moved no weights: {shown}"
        if not steps:
            where = "was not trained on" if idle else "was not read"
            return f"never trained on: {asked} is in the sets and {where} in this history{beside}{missed}"
        shown = ", ".join(map(str, steps[:20])) + (", ..." if len(steps) > 20 else "")
        return f"trained on {len(steps)} times: {asked} at steps {shown}{beside}{missed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sets:
    """The run's sets as they are now, and the course over them."""

    inputs: tuple[Input, ...]
    manifests: tuple[Manifest, ...]
    course: Course


def open_sets(header: Header, moved: Mapping[str, str]) -> Sets:
    """The sets that a start names, at their recorded or their new location, and its course.

    Raises:
        UsageError: when a manifest is absent or another than the run's.
    """
    inputs, manifests = [], []
    unknown = sorted(set(moved) - {item.location for item in header.inputs})
    if unknown:
        names = ", ".join(item.location for item in header.inputs)
        raise UsageError(f"--set {unknown[0]}=...: the run read no such set, only {names}")
    for item in header.inputs:
        location = moved.get(item.location, item.location)
        where = f"{location}/{manifest.NAME}"
        try:
            with lookup.open_file(location, manifest.NAME) as stream:
                content = stream.read()
        except OSError as error:
            said = f"cannot read {where} ({error}): name the set's new place with --set '{item.location}=LOCATION'"
            raise UsageError(f"{said}, or leave the samples out with --fast") from error
        if sha256(content).hexdigest() != item.manifest:
            raise UsageError(f"{where} has another sha256 than the manifest that the run read: it is another set")
        manifests.append(manifest.parse(content, where, header.kind))
        inputs.append(replace(item, location=location))
    return Sets(inputs=tuple(inputs), manifests=tuple(manifests), course=course(header, manifests))


def course(header: Header, manifests: Sequence[Manifest]) -> Course:
    """The course of a start, rebuilt from its header."""
    pairs = zip(header.inputs, manifests, strict=True)
    return Course(
        sources=tuple(
            Source(name=item.location, sizes=one.sizes, buckets=one.buckets, **item.share) for item, one in pairs
        ),
        seed=header.seed,
        window=header.window,
        lanes=header.lanes,
        total=header.total,
    )


def prove(starts: Sequence[Start], sets: Sets | None, until: int | None = None, quiet: bool = True) -> Report:
    """Hold the history of `starts` against the order; without `sets` the samples are not computed again."""
    header = starts[0].header
    stretches, faults = history.chain(starts, until)
    covers = [history.cover(stretch, header.total) for stretch in stretches]
    faults += [fault for cover in covers for fault in cover.faults]
    wrong: int | None = None
    sources: tuple[SourceReport, ...] = ()
    if sets is not None:
        again = recount(stretches, sets.course, header.total, quiet)
        faults += [*_other_order(header, sets.course), *again.faults]
        wrong, sources = again.wrong, _passes(stretches, sets)
    skipped = history.skips(stretches)
    counted = {stretch.start.name: stretch.end - stretch.begin for stretch in stretches}
    steps = sum(counted.values())
    lost = [one for stretch in stretches for one in lost_samples(stretch, header.total)]
    reports = tuple(_start(start, stretches) for start in starts)
    return Report(
        proven=not faults,
        steps=steps,
        positions=steps * header.total,
        missing=sum(cover.missing for cover in covers),
        duplicates=sum(cover.duplicates for cover in covers),
        overlaps=sum(cover.overlaps for cover in covers),
        wrong_digests=wrong,
        redone_steps=sum(one.recorded - one.counted for one in reports),
        fingerprint=header.fingerprint,
        starts=reports,
        skipped=tuple(
            SkipReport(begin=one.begin, end=one.end, samples=(one.end - one.begin) * header.total, reason=one.reason)
            for one in skipped
        ),
        sources=sources,
        substituted=dict(sorted(Counter(one.reasons[0] for one in lost).items())),
        faults=tuple(faults),
    )


def _other_order(header: Header, now: Course) -> list[Fault]:
    if now.fingerprint == header.fingerprint:
        return []
    said = f"the sets give an order with the fingerprint {now.fingerprint[:12]}, the first start had"
    return [Fault(kind="header", sentence=f"{said} {header.fingerprint[:12]}")]


def _passes(stretches: Sequence[Stretch], sets: Sets) -> tuple[SourceReport, ...]:
    # a substitute is of the same source, so the order alone says what each gave
    counts = [0] * len(sets.inputs)
    parts = [(stretch.begin, stretch.end, 1) for stretch in stretches]
    parts += [(skip.begin, skip.end, -1) for skip in history.skips(stretches)]
    for begin, end, sign in parts:
        first, last = sets.course.given(begin), sets.course.given(end)
        counts = [count + sign * (after - before) for count, before, after in zip(counts, first, last, strict=True)]
    return tuple(
        SourceReport(source=item.location, samples=count, passes=count / one.samples)
        for item, one, count in zip(sets.inputs, sets.manifests, counts, strict=True)
    )


def _start(start: Start, stretches: Sequence[Stretch]) -> StartReport:
    recorded = start.recorded
    counted = [
        int(((recorded >= stretch.begin) & (recorded < stretch.end)).sum())
        for stretch in stretches
        if stretch.start is start
    ]
    return StartReport(
        start=start.name,
        size=start.header.size,
        resumed=start.header.step,
        recorded=len(recorded),
        counted=sum(counted),
        torn=sum(pages.ending == "torn" for pages in start.pages),
    )


def ask(stretches: Sequence[Stretch], sets: Sets, column: Column, value: str, quiet: bool = True) -> Answer:
    """Where the samples with that value were read in a history (bigdiff.data.history.chain).

    Raises:
        UsageError: when no set's index has the column.
    """
    samples: list[Sample] = []
    unread: list[str] = []
    for number, (item, one) in enumerate(zip(sets.inputs, sets.manifests, strict=True)):
        searched = lookup.rows(item.location, one, column, value, quiet)
        samples += [(number, shard, row) for shard, row in searched.places]
        unread += searched.unread
    seen = lookup.sightings(stretches, sets.course, samples)
    found = [
        Found(
            source=sets.inputs[one.sample[0]].location,
            shard=sets.manifests[one.sample[0]].shards[one.sample[1]].name,
            row=one.sample[2],
            sighting=one,
        )
        for one in seen
    ]
    return Answer(column=column, value=value, found=tuple(found), unread=tuple(unread))
