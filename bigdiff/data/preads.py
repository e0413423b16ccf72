"""Many reads at once: `bigdiff/data/_pread.c`, built with the package, called without the interpreter's lock."""

import ctypes

import numpy as np
import numpy.typing as npt

from bigdiff.data.order import Ints
from bigdiff.runtime.compiled import library

_preads = library("bigdiff.data._pread").bigdiff_preads
_preads.restype = None
_preads.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]


def preads(descriptors: npt.NDArray[np.int32], offsets: Ints, target: npt.NDArray[np.uint8]) -> Ints:
    """Fill row i of `target` (uint8 [n, length], C order) from `offsets[i]` of the file `descriptors[i]`.

    Returns int64 [n]: bytes read, fewer than `length` at the end of a file, or minus the error number. A negative
    descriptor is skipped (0 bytes).
    """
    count, length = target.shape
    got = np.empty(count, np.int64)
    assert target.dtype == np.uint8 and target.flags.c_contiguous and target.flags.writeable
    assert descriptors.dtype == np.int32 and offsets.dtype == np.int64
    assert len(descriptors) == len(offsets) == count and descriptors.flags.c_contiguous and offsets.flags.c_contiguous
    _preads(descriptors.ctypes.data, offsets.ctypes.data, count, target.ctypes.data, length, got.ctypes.data)
    return got
