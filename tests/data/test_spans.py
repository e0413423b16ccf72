"""What is asked for is what gets into the page cache, no page more; mincore is the oracle."""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigdiff.data.spans import Spans, ask, cached, joined

SIZE = 4 << 20
PLACES = [(0, 1), (70_001, 66_000), (1 << 20, 5), ((2 << 20) - 3, 900_000), (SIZE - 10, 10)]  # offset, length


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def spans(descriptor: int, places: list[tuple[int, int]]) -> Spans:
    offsets, lengths = np.array(places, np.int64).T
    return Spans(descriptors=np.full(len(places), descriptor, np.int32), offsets=offsets, lengths=lengths)


def test_exactly_the_pages_that_were_asked_for_are_there(
    file: Path, evict: Callable[[Path], None], resident: Callable[[Path], np.ndarray]
) -> None:
    evict(file)
    wanted = np.zeros(SIZE // mmap.PAGESIZE, bool)
    for offset, length in PLACES:
        wanted[offset // mmap.PAGESIZE : (offset + length - 1) // mmap.PAGESIZE + 1] = True
    descriptor = os.open(file, os.O_RDONLY)
    asked, until = spans(descriptor, PLACES), time.monotonic() + 10
    assert not cached(asked)
    evict(file)  # where a probe read something
    ask(asked)
    while not np.array_equal(resident(file), wanted):
        assert time.monotonic() < until, np.flatnonzero(resident(file) != wanted)
        time.sleep(0.01)
    assert cached(asked) and not cached(joined([asked, spans(descriptor, [(1 << 19, 1)])]))
    os.close(descriptor)


def test_what_cannot_be_read_is_no_error() -> None:
    closed = spans(10**6, [(0, 4096)])
    ask(closed)
    ask(joined([]))
    assert not cached(closed) and cached(joined([]))


def test_spans_are_cut_and_joined(file: Path) -> None:
    one = spans(3, PLACES)
    again = joined([one[:2], one[2:2], one[2:]])
    assert len(again) == len(PLACES) and again.bytes == sum(length for _, length in PLACES)
    assert list(zip(again.offsets.tolist(), again.lengths.tolist(), strict=True)) == PLACES
