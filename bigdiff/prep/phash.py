"""A picture's 64-bit perceptual hash: pictures that look the same differ in few bits, others in about half.

The pHash of Krawetz (2011, hackerfactor.com/blog, article 432) as ImageHash 4 computes it with `phash(picture,
hash_size=8, highfreq_factor=4)`: grey by ITU-R 601, 32 x 32 by Pillow's Lanczos filter (antialiased), DCT-II of columns
and rows, of it the 8 x 8 lowest frequencies; a bit is set where the coefficient is above their median. The first bit
(the mean) is the highest.

One thing is fixed that ImageHash leaves to the last bit of its floating point: coefficients are compared as multiples
of 1e-6, so ties are ties on every machine. Values differ from ImageHash's only where the 32nd and the 33rd coefficient
are equal and its own round-off decides: exact patterns, no photo.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

BITS: Final = 64
LEAST_BITS: Final = 24
_ALL: Final = (1 << BITS) - 1
_SIDE: Final = 32  # pixels
_LOW: Final = 8  # frequencies an axis
_DECIMALS: Final = 6  # coefficients reach 1e6, their round-off 1e-9
# DCT-II without normalisation, its lowest rows: row k, column n is 2 cos(pi k (2n + 1) / 2N).
_DCT: Final = 2 * np.cos(np.pi * np.outer(np.arange(_LOW), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))


def phash(picture: Image.Image) -> int:
    """The hash of an upright RGB picture of any size, as a signed 64-bit number: parquet and duckdb hold it so."""
    grey = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = np.round(_DCT @ np.asarray(grey, np.float64) @ _DCT.T, _DECIMALS)
    ordered = np.sort(low, axis=None)
    median = (ordered[BITS // 2 - 1] + ordered[BITS // 2]) / 2
    return int.from_bytes(np.packbits(low > median).tobytes(), "big", signed=True)


def distance(one: int, other: int) -> int:
    """How many of the 64 bits differ."""
    return ((one ^ other) & _ALL).bit_count()


def is_flat(value: int) -> bool:
    """Whether the hash says too little to compare pictures by.

    Without ties just 32 coefficients are above the median. Fewer than 24 bits: nine or more tie with it, which takes a
    picture of one colour, of stripes, or an exact mirror image of itself; many such pictures share a hash.
    """
    return (value & _ALL).bit_count() < LEAST_BITS


def flat_sql(column: str) -> str:
    """`is_flat` of a BIGINT column, as a predicate of duckdb's."""
    return f"bit_count({column}) < {LEAST_BITS}"


def distances(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """`distance`, elementwise; int64, broadcast."""
    return np.bitwise_count((one ^ other).view(np.uint64))
