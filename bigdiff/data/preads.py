"""Many members read and checked at once, or taken from memory: `_preads.c`, called without the interpreter's lock."""

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from bigdiff.data.arena import Kept
from bigdiff.data.order import Ints
from bigdiff.runtime.compiled import library

SHORT = 240  # bytes up to which XXH3 is another function, which `_preads.c` leaves to xxhash

_preads = library("bigdiff.data._preads").bigdiff_read_members
_preads.restype = ctypes.c_int64
_preads.argtypes = [
    *[ctypes.c_void_p] * 2,
    ctypes.c_int64,
    ctypes.c_void_p,
    *[ctypes.c_int64] * 2,
    *[ctypes.c_void_p] * 3,
]


class Place(ctypes.Structure):
    """An open shard for `_preads.c`: the offset (int64) and the checksum (uint64) of each row, and 1 where it is dead.

    A negative descriptor: there is nothing to read. `kept`: where its good rows of more than SHORT bytes are kept.
    Whoever hands out the address keeps the object.
    """

    _fields_ = (
        ("descriptor", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("checksums", ctypes.c_void_p),
        ("dead", ctypes.c_void_p),
        ("kept", ctypes.c_void_p),
        ("room", ctypes.c_void_p),
    )

    def __init__(
        self, descriptor: int, offsets: memoryview, checksums: memoryview, dead: bytes, kept: Kept | None = None
    ) -> None:
        assert len(offsets) == len(checksums) == len(dead)
        assert offsets.c_contiguous and checksums.c_contiguous and offsets.itemsize == checksums.itemsize == 8
        self._arrays = [np.asarray(one) for one in (offsets, checksums, memoryview(dead))]  # keeps their memory
        super().__init__(descriptor, len(offsets), *(one.ctypes.data for one in self._arrays))
        self._kept = kept
        if kept is not None:
            assert len(kept.rows) == len(offsets)
            self.kept, self.room = kept.rows.ctypes.data, ctypes.addressof(kept.room)


def preads(places: Sequence[int], rows: Ints, target: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """Fill row i of `target` (uint8 [n, length]; its rows contiguous) with row `rows[i]` of the Place at `places[i]`.

    Returns the indexes of the bad ones, ascending, which did not come whole or have not the checksum of the place; and
    int64 [n]: bytes read, fewer than `length` at the end of a file, 0 where a row was taken down or there is nothing to
    read, or minus the error number. What a bad row of `target` holds is not said.
    """
    count, length = target.shape
    assert target.dtype == np.uint8 and target.strides[1] == 1 and target.flags.writeable
    assert len(places) == len(rows) == count
    block = np.empty((5, count), np.int64)  # one, because to ask for an address costs 1 us
    block[0], block[1] = places, rows
    first, row = block.ctypes.data, 8 * count
    asked, results = (first, first + row), (first + 2 * row, first + 3 * row, first + 4 * row)
    found = _preads(*asked, count, target.ctypes.data, target.strides[0], length, *results)
    got, expected, bad = block[2:]
    if length > SHORT:
        return bad[:found], got
    digests = np.array([xxh3_64_intdigest(row) for row in target], np.uint64)
    return np.flatnonzero((got != length) | (digests != expected.view(np.uint64))), got
