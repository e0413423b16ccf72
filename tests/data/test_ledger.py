import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.config.errors import RunError
from bigdiff.data import ledger, pages
from bigdiff.data.damage import Consumed, Substitution
from bigdiff.data.ledger import Header, Input, Ledger
from bigdiff.data.pages import Pages

INPUT = Input(location="/sets/main", manifest="ab" * 32, share={"proportion": 1.0, "repeat": None})


def header(start: str, rank: int = 0, size: int = 2, step: int = 0) -> Header:
    return Header(
        start=start,
        step=step,
        rank=rank,
        size=size,
        fingerprint="cd" * 32,
        total=8,
        seed=2**63 + 1,
        window=4,
        lanes=2,
        kind="latents",
        inputs=(INPUT,),
    )


U64 = st.integers(0, 2**64 - 1)
LOST = st.builds(
    Substitution,
    position=st.integers(0, 2**63 - 1),
    source=st.integers(0, 2**16 - 1),
    shard=st.integers(0, 2**32 - 1),
    row=st.integers(0, 2**32 - 1),
    reason=st.sampled_from(["tombstone", "truncated: 3 of 4 bytes", "truncated: 1 of 4 bytes", "Prüfsumme"]),
)
MICRO = st.builds(
    Consumed,
    position=st.integers(0, 40).map(lambda number: 4 * number),
    samples=st.sampled_from([4, 4, 4, 8]),
    digest=U64,
    substituted=st.lists(LOST, max_size=2).map(tuple),
)
RECORDS = st.lists(st.lists(MICRO, max_size=5), max_size=8)


def written(run: Path, records: Sequence[Sequence[Consumed]], step: int = 0) -> Path:
    opened = Ledger(run, header(ledger.new_start(run), step=step))
    for number, batches in enumerate(records, step):
        opened.write(number, batches)
    opened.close()
    return opened.file


def expanded(read: Pages) -> list[tuple[int, int, int]]:
    """(step, position, samples) of each micro-batch."""
    return [
        (int(read.steps[owner]), int(run["position"]) + int(run["micro"]) * number, int(run["micro"]))
        for owner, run in zip(read.owners, read.runs, strict=True)
        for number in range(int(run["batches"]))
    ]


@settings(max_examples=150, deadline=None)
@given(RECORDS)
def test_what_is_written_is_read(records: list[list[Consumed]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = pages.read(written(Path(folder), records, step=5))
    assert found is not None
    assert found.ending == "whole"
    assert found.header == header(found.header.start, step=5)
    assert found.steps.tolist() == [5 + number for number in range(len(records))]
    micros = [(step, batch) for step, batches in enumerate(records, 5) for batch in batches]
    assert expanded(found) == [(step, batch.position, batch.samples) for step, batch in micros]
    lost = [item for _, batch in micros for item in batch.substituted]
    assert [tuple(row)[:4] for row in found.substitutions.tolist()] == [
        (item.position, item.source, item.shard, item.row) for item in lost
    ]
    reasons = [found.reasons[code] for code in found.substitutions["reason"].tolist()]
    assert reasons == [item.reason.partition(":")[0] for item in lost]


@settings(max_examples=150, deadline=None)
@given(RECORDS, st.data())
def test_a_cut_anywhere_leaves_the_records_before_it(records: list[list[Consumed]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), records)
        whole, content = pages.read(file), file.read_bytes()
        at = data.draw(st.integers(0, len(content)))
        file.write_bytes(content[:at])
        cut = pages.read(file)
    assert whole is not None
    if cut is None:
        assert at < 8 + int.from_bytes(content[4:8], "little")  # inside the header
        return
    assert cut.ending == ("whole" if cut.readable == at else "torn")
    assert cut.readable <= at
    assert cut.steps.tolist() == whole.steps[: len(cut.steps)].tolist()
    assert cut.runs.tobytes() == whole.runs[: len(cut.runs)].tobytes()
    assert len(cut.steps) == len(whole.steps) or at < len(content)


@settings(max_examples=150, deadline=None)
@given(RECORDS.filter(lambda records: len(records) > 1), st.data())
def test_a_flipped_bit_is_damage_and_no_tear(records: list[list[Consumed]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), records)
        content = bytearray(file.read_bytes())
        begin = 8 + int.from_bytes(content[4:8], "little")  # behind the header
        bit = data.draw(st.integers(8 * begin, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(content)
        found = pages.read(file)
    assert found is not None
    assert found.readable <= bit // 8
    assert len(found.steps) < len(records)
    # only the length of a reason's short frame may be taken for a cut
    assert found.ending == "damaged" or b"R" in content[found.readable :]


def test_a_step_costs_47_bytes_whatever_the_accumulation(tmp_path: Path) -> None:
    def micros(count: int) -> list[Consumed]:
        return [Consumed(position=4 * number, samples=4, digest=number, substituted=()) for number in range(count)]

    sizes = [written(tmp_path, records).stat().st_size for records in ([], [micros(1)], [micros(64)], [micros(1)] * 3)]
    assert [size - sizes[0] for size in sizes] == [0, 47, 47, 141]
    again = pages.read(written(tmp_path, [micros(3)]))
    assert again is not None
    assert int(again.runs["digest"][0]) == xxhash.xxh3_64_intdigest(np.arange(3, dtype="<u8").tobytes())


def test_records_outlive_sigkill(tmp_path: Path) -> None:
    script = f"""
import os, signal
from bigdiff.data.damage import Consumed
from bigdiff.data.ledger import Header, Ledger, Input
from pathlib import Path
opened = Ledger(Path({str(tmp_path)!r}), {header("00000000000000000001-aa")!r})
for step in range(7):
    opened.write(step, [Consumed(position=8 * step, samples=4, digest=step, substituted=())])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    found = pages.read(tmp_path / "audit" / "00000000000000000001-aa" / "rank-00000-of-00002.ledger")
    assert found is not None
    assert (found.steps.tolist(), found.ending) == (list(range(7)), "whole")


def test_starts_are_named_in_the_order_of_time_whatever_the_clock_says(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(ledger.new_start(tmp_path))
        Ledger(tmp_path, header(names[-1])).close()
    ahead = f"{2**63:020d}-ffffffff"  # a node whose clock is centuries ahead
    (tmp_path / "audit" / ahead).mkdir()
    names += [ahead, ledger.new_start(tmp_path)]
    assert sorted(names) == names
    assert ledger.starts(tmp_path) == names[:-1]
    assert ledger.new_start(tmp_path) != names[-1]  # two at once


def test_one_file_a_rank(tmp_path: Path) -> None:
    first = Ledger(tmp_path, header("00000000000000000001-aa"))
    with pytest.raises(RunError, match=r"rank-00000-of-00002\.ledger exists: two processes .* rank 0"):
        Ledger(tmp_path, header("00000000000000000001-aa"))
    Ledger(tmp_path, header("00000000000000000001-aa", rank=1)).close()
    first.close()
    first.close()


def test_a_full_disk_ends_the_run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        opened = Ledger(Path(folder), header("00000000000000000001-aa"))
        descriptor = os.open("/dev/full", os.O_WRONLY)
        os.dup2(descriptor, opened._descriptor)
        os.close(descriptor)
        with pytest.raises(RunError, match=r"cannot write .*rank-00000-of-00002\.ledger: No space left on device"):
            opened.write(0, [])
