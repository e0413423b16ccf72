"""Many reads at once, and their checksums: `_preads.c`, called without the interpreter's lock."""

import ctypes

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from bigdiff.data.order import Ints
from bigdiff.runtime.compiled import library

SHORT = 240  # bytes up to which XXH3 is another function, which `_preads.c` leaves to xxhash

_preads = library("bigdiff.data._preads").bigdiff_preads
_preads.restype = None
_preads.argtypes = [*[ctypes.c_void_p] * 2, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 2]


def preads(
    descriptors: npt.NDArray[np.int32], offsets: Ints, target: npt.NDArray[np.uint8]
) -> tuple[Ints, npt.NDArray[np.uint64]]:
    """Fill row i of `target` (uint8 [n, length], C order) from `offsets[i]` of the file `descriptors[i]`.

    Returns int64 [n]: bytes read, fewer than `length` at the end of a file, or minus the error number; and uint64 [n]:
    XXH3 (64 bits) of each row that was read whole, else 0. A negative descriptor is skipped (0 bytes).
    """
    count, length = target.shape
    got, digests = np.empty(count, np.int64), np.empty(count, np.uint64)
    assert target.dtype == np.uint8 and target.flags.c_contiguous and target.flags.writeable
    assert descriptors.dtype == np.int32 and offsets.dtype == np.int64
    assert len(descriptors) == len(offsets) == count and descriptors.flags.c_contiguous and offsets.flags.c_contiguous
    results = got.ctypes.data, digests.ctypes.data
    _preads(descriptors.ctypes.data, offsets.ctypes.data, count, target.ctypes.data, length, *results)
    if length <= SHORT:
        digests[:] = [xxh3_64_intdigest(row) if read == length else 0 for row, read in zip(target, got, strict=True)]
    return got, digests
