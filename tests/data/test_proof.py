import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.data import ledger
from bigdiff.data.course import Course
from bigdiff.data.damage import Consumed, Substitution
from bigdiff.data.history import read_starts
from bigdiff.data.ledger import Header, Input, Ledger
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.data.mixture import Source
from bigdiff.data.proof import Report, Sets, prove
from bigdiff.data.stream import digest

TOTAL = 24
SIZES = (1, 2, 3, 4, 8)
Sample = tuple[int, int, int]
Records = list[tuple[int, list[Consumed]]]  # step and micro-batches
Change = Callable[[int, int, Records], Records]  # start, rank, what it would write


@dataclass(frozen=True, kw_only=True)
class Life:
    """One start: it resumes from `parent`'s step, does some steps on all ranks, and dies within the next one."""

    parent: int  # the start it resumes from, -1 for none
    step: int  # at which it resumes
    size: int
    micro: int
    steps: int  # done by all ranks
    further: tuple[bool, ...]  # ranks that recorded one step more
    cut: int  # bytes that are missing from those last records


@dataclass(frozen=True, kw_only=True)
class World:
    course: Course
    bad: frozenset[Sample]
    lives: tuple[Life, ...]
    named: bool  # whether headers say whose checkpoint they resumed from

    @property
    def owners(self) -> list[int]:
        """The start that did each step of the history."""
        owners: list[int] = []
        lineage, number = [], len(self.lives) - 1
        while number >= 0:
            lineage.append(number)
            number = self.lives[number].parent
        for number in reversed(lineage):
            life = self.lives[number]
            owners = owners[: life.step] + [number] * (end(life) - life.step)
        return owners


def end(life: Life) -> int:
    """All ranks have recorded the steps below."""
    return life.step + life.steps + (all(life.further) and not life.cut)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    sizes = [
        np.array(draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))) for _ in range(draw(st.integers(1, 2)))
    ]
    sources = tuple(
        Source(name=f"set {number}", sizes=one, buckets=tuple(draw(st.sampled_from(["8x8", "8x16"])) for _ in one))
        for number, one in enumerate(sizes)
    )
    lanes = draw(st.sampled_from([1, 2, 3]))
    course = Course(sources=sources, seed=draw(st.integers(0, 99)), window=2, lanes=lanes, total=TOTAL)
    every = [(n, shard, row) for n, one in enumerate(sizes) for shard, size in enumerate(one) for row in range(1, size)]
    bad = draw(st.lists(st.sampled_from(every), max_size=3, unique=True)) if every else []
    named = draw(st.booleans())
    lives: list[Life] = []
    for number in range(draw(st.integers(1, 4))):
        parent = draw(st.integers(0, number - 1)) if named and number else number - 1
        step = draw(st.integers(lives[parent].step, end(lives[parent]))) if number else 0
        size = draw(st.sampled_from(SIZES))
        micro = draw(st.sampled_from([n for n in (1, 3, 8, 24) if TOTAL // size % n == 0]))
        further = tuple(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        cut = draw(st.integers(0, 46))
        steps = draw(st.integers(0, 6))
        lives.append(Life(parent=parent, step=step, size=size, micro=micro, steps=steps, further=further, cut=cut))
    return World(course=course, bad=frozenset(bad), lives=tuple(lives), named=named)


def consumed(world: World, position: int, micro: int) -> Consumed:
    """What a reader of the course makes of a micro-batch."""
    step, begin = divmod(position, TOTAL)
    picks = world.course.locate(step, begin, begin + micro)
    samples = np.stack((picks.sources, picks.shards, picks.rows))
    lost = []
    for at in range(micro):
        found: Sample = tuple(samples[:, at].tolist())
        attempt = 0
        while found in world.bad:
            source, shard, row = found
            lost.append(
                Substitution(position=position + at, source=source, shard=shard, row=row, reason="truncated: 1 of 2")
            )
            attempt += 1
            found = world.course.substitute(position + at, attempt)
        samples[:, at] = found
    return Consumed(position=position, samples=micro, digest=digest(*samples), substituted=tuple(lost))


def part(world: World, start: int, rank: int, step: int) -> list[Consumed]:
    """A rank's micro-batches of a step."""
    life = world.lives[start]
    first, share = step * TOTAL + rank * (TOTAL // life.size), TOTAL // life.size
    return [consumed(world, position, life.micro) for position in range(first, first + share, life.micro)]


def header(world: World, number: int, rank: int, names: Sequence[str]) -> Header:
    life = world.lives[number]
    return Header(
        start=names[number],
        parent=names[life.parent] if world.named and life.parent >= 0 else "",
        step=life.step,
        rank=rank,
        size=life.size,
        fingerprint=world.course.fingerprint,
        total=TOTAL,
        seed=world.course.seed,
        window=2,
        lanes=world.course.lanes,
        kind="latents",
        inputs=tuple(Input(location=s.name, manifest="", share={}) for s in world.course.sources),
    )


def nothing(start: int, rank: int, records: Records) -> Records:
    return records


def write(run: Path, world: World, change: Change = nothing, foreign: tuple[int, int] | None = None) -> list[str]:
    """The run's ledgers; `change` plants a fault, the rank `foreign` of a start reads another order."""
    names: list[str] = []
    for number, life in enumerate(world.lives):
        names.append(ledger.new_start(run))
        for rank in range(life.size):
            steps = range(life.step, life.step + life.steps + life.further[rank])
            records = [(step, part(world, number, rank, step)) for step in steps]
            about = header(world, number, rank, names)
            opened = Ledger(run, replace(about, fingerprint="ab" * 32) if foreign == (number, rank) else about)
            for step, batches in change(number, rank, records):
                opened.write(step, batches)
            opened.close()
            if life.further[rank] and life.cut:
                content = opened.file.read_bytes()
                opened.file.write_bytes(content[: len(content) - life.cut])
    return names


def sets(world: World) -> Sets:
    manifests = tuple(
        Manifest(
            kind="latents",
            shards=tuple(
                Shard(name=f"{number:05d}", samples=size, bytes=1, sha256="", bucket=bucket)
                for number, (size, bucket) in enumerate(zip(source.sizes.tolist(), source.buckets, strict=True))
            ),
        )
        for source in world.course.sources
    )
    return Sets(inputs=header(world, 0, 0, ["", "", "", ""]).inputs, manifests=manifests, course=world.course)


def proof(world: World, change: Change = nothing) -> tuple[Report, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        names = write(Path(folder), world, change)
        return prove(read_starts(Path(folder)), sets(world)), names


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_every_history_of_crashes_and_resizes_is_proven(world: World) -> None:
    report, names = proof(world)
    assert report.faults == ()
    assert report.proven
    owners = world.owners
    assert (report.steps, report.positions) == (len(owners), TOTAL * len(owners))
    assert [report.missing, report.duplicates, report.overlaps, report.wrong_digests] == [0, 0, 0, 0]
    assert [start.start for start in report.starts] == names
    assert [start.counted for start in report.starts] == [owners.count(number) for number in range(len(names))]
    assert sum(source.samples for source in report.sources) == report.positions
    expected = sum(
        len({lost.position for lost in consumed(world, step * TOTAL, TOTAL).substituted}) for step in range(len(owners))
    )
    assert sum(report.substituted.values()) == expected


@st.composite
def places(draw: st.DrawFn) -> tuple[World, int, int, int]:
    """A world, and a start, rank and step of its history."""
    world = draw(worlds().filter(lambda world: len(world.owners) > 0))
    step = draw(st.integers(0, len(world.owners) - 1))
    start = world.owners[step]
    return world, start, draw(st.integers(0, world.lives[start].size - 1)), step


def at(place: tuple[World, int, int, int], edit: Callable[[list[Consumed]], list[list[Consumed]]]) -> Change:
    """A change of the one record at `place` into others of its step."""
    _, start, rank, step = place

    def change(number: int, writer: int, records: Records) -> Records:
        if (number, writer) != (start, rank):
            return records
        return [(of, batches) for of, was in records for batches in (edit(was) if of == step else [was])]

    return change


def named(report: Report, kind: str, place: tuple[World, int, int, int], names: list[str]) -> bool:
    """Whether a fault of that kind names the step, the rank and the file."""
    world, start, rank, step = place
    file = f"{names[start]}/{ledger.file_name(rank, world.lives[start].size)}"
    sentences = [fault.sentence for fault in report.faults if fault.kind == kind]
    return any(f"step {step}: " in one and f"rank {rank}" in one and file in one for one in sentences)


@settings(max_examples=40, deadline=None)
@given(places())
def test_a_lost_record_is_missing(place: tuple[World, int, int, int]) -> None:
    world, start, _, step = place
    report, names = proof(world, at(place, lambda was: []))
    life = world.lives[start]
    if start == len(world.lives) - 1 and step >= len(world.owners) - 1:
        # the last record of the last start may never have been written, unless another rank went on behind it
        assert (report.proven and report.steps == step) or named(report, "missing", place, names)
        return
    assert not report.proven
    assert report.missing == TOTAL // life.size
    assert named(report, "missing", place, names)
    assert {fault.kind for fault in report.faults} == {"missing"}


@settings(max_examples=40, deadline=None)
@given(places())
def test_a_record_written_twice_is_a_duplicate(place: tuple[World, int, int, int]) -> None:
    report, names = proof(place[0], at(place, lambda was: [was, was]))
    assert not report.proven
    assert report.duplicates == TOTAL // place[0].lives[place[1]].size
    assert report.missing == report.overlaps == 0
    assert named(report, "duplicate", place, names)


@settings(max_examples=40, deadline=None)
@given(places(), st.integers(1, 2**64 - 1))
def test_a_wrong_digest_is_named(place: tuple[World, int, int, int], flip: int) -> None:
    report, names = proof(place[0], at(place, lambda was: [[replace(was[0], digest=was[0].digest ^ flip), *was[1:]]]))
    assert report.wrong_digests == 1
    assert [fault.kind for fault in report.faults] == ["digest"]
    assert named(report, "digest", place, names)


@settings(max_examples=40, deadline=None)
@given(places().filter(lambda place: place[0].lives[place[1]].size > 1))
def test_two_ranks_with_the_same_slice_overlap(place: tuple[World, int, int, int]) -> None:
    world, start, rank, step = place
    life, share = world.lives[start], TOTAL // world.lives[start].size
    other = (rank + 1) % life.size
    theirs = part(world, start, other, step)
    report, names = proof(world, at(place, lambda was: [theirs]))
    assert (report.overlaps, report.missing) == (share, share)
    assert {fault.kind for fault in report.faults} == {"overlap", "gap"}
    (overlap,) = (fault.sentence for fault in report.faults if fault.kind == "overlap")
    assert f"step {step}: ranks {min(rank, other)} and {max(rank, other)} both recorded" in overlap
    assert names[start] in overlap


@settings(max_examples=40, deadline=None)
@given(places().filter(lambda place: place[0].lives[place[1]].micro < TOTAL // place[0].lives[place[1]].size))
def test_a_lost_micro_batch_is_a_gap(place: tuple[World, int, int, int]) -> None:
    report, names = proof(place[0], at(place, lambda was: [[*was[:1], *was[2:]]]))
    assert report.missing == place[0].lives[place[1]].micro
    assert [fault.kind for fault in report.faults] == ["gap"]
    assert named(report, "gap", place, names)


@settings(max_examples=40, deadline=None)
@given(places(), st.booleans())
def test_substitutions_must_be_those_of_the_order(place: tuple[World, int, int, int], drop: bool) -> None:
    world, _, _, _ = place

    def edit(was: list[Consumed]) -> list[list[Consumed]]:
        lost = was[0].substituted
        others = () if drop else tuple(replace(one, row=one.row + 1) for one in lost)
        return [[replace(was[0], substituted=others), *was[1:]]]

    report, names = proof(world, at(place, edit))
    planted = part(*place)[0].substituted
    assert report.proven != bool(planted)
    if planted:
        assert {fault.kind for fault in report.faults} == {"digest" if drop else "substitution"}
        assert named(report, "digest" if drop else "substitution", place, names)


@settings(max_examples=30, deadline=None)
@given(places())
def test_records_of_another_step_are_strays(place: tuple[World, int, int, int]) -> None:
    report, names = proof(
        place[0], at(place, lambda was: [[replace(one, position=one.position + TOTAL) for one in was]])
    )
    assert named(report, "stray", place, names)
    assert report.missing == TOTAL // place[0].lives[place[1]].size


@settings(max_examples=30, deadline=None)
@given(places())
def test_another_order_is_named(place: tuple[World, int, int, int]) -> None:
    world, start, rank, _ = place
    with tempfile.TemporaryDirectory() as folder:
        names = write(Path(folder), world, foreign=(start, rank))
        report = prove(read_starts(Path(folder)), sets(world))
    sentences = [fault.sentence for fault in report.faults]
    assert not report.proven
    if (start, rank) != (0, 0):
        (only,) = sentences
        assert f"{names[start]}/{ledger.file_name(rank, world.lives[start].size)} has the fingerprint ababab" in only
        assert f"rank {rank} at step {world.lives[start].step}" in only
