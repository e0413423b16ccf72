import io

import duckdb
import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image

from bigdiff.prep.phash import BITS, distance, distances, flat_sql, is_flat, phash

signed = some.integers(-(2**63), 2**63 - 1)


def pattern(width: int, height: int, a: int, b: int, c: int) -> Image.Image:
    y, x = np.mgrid[:height, :width].astype(np.int64)
    red, green, blue = a * x * x + b * y * x + 31 * y, b * x * y * y + c * x, c * y * y + a * x * y
    return Image.fromarray((np.stack([red // 97, green // 1009, blue // 53], -1) % 256).astype(np.uint8))


def noise(seed: int, side: int = 64) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def by_definition(picture: Image.Image) -> int:
    """What ImageHash does, with scipy's transform of today."""
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = scipy.fft.dct(scipy.fft.dct(grey, axis=0), axis=1)[:8, :8]
    return int("".join("01"[int(bit)] for bit in (low > np.median(low)).ravel()), 2)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [  # by ImageHash 4.3.2: phash(picture), Pillow 13.0.0
        ((96, 96, 3, 5, 7), 0x801D36746963CFDC),
        ((512, 512, 1, 1, 2), 0x8000031F3F3F3F3F),
        ((640, 427, 2, 3, 1), 0x8100031F1F3F3F3F),
        ((31, 17, 11, 13, 2), 0xAA5F8A55A85DA85C),
        ((200, 300, 1, 4, 9), 0x80000F1F3F3E3D3F),
        ((1024, 768, 5, 1, 3), 0x810702071F3F3F3F),
    ],
)
def test_values_are_those_of_imagehash(picture: tuple[int, int, int, int, int], expected: int) -> None:
    found = phash(pattern(*picture))
    assert -(2**63) <= found < 2**63
    assert found % 2**BITS == expected


@settings(max_examples=60, deadline=None)
@given(some.integers(3, 150), some.integers(3, 150), some.integers(0, 2**32))
def test_it_is_the_definition(width: int, height: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert phash(Image.fromarray(values)) % 2**BITS == by_definition(Image.fromarray(values))


def test_an_edited_picture_is_near_and_others_are_far() -> None:
    for seed in range(8):
        picture, stream = noise(seed), io.BytesIO()
        picture.save(stream, "JPEG", quality=50)
        assert distance(phash(picture), phash(Image.open(stream))) <= 4
        assert distance(phash(picture), phash(picture.resize((40, 40)))) <= 4
        assert distance(phash(picture), phash(noise(seed + 100))) > 12
        assert not is_flat(phash(picture))


@pytest.mark.parametrize(
    "values",
    [
        np.full((40, 50, 3), 131),
        np.zeros((40, 50, 3)),
        np.tile(np.random.default_rng(0).integers(0, 256, (1, 90, 3)), (60, 1, 1)),  # stripes
        np.repeat(np.array([[[10, 30, 200]], [[250, 240, 9]]]), 64, axis=1).repeat(32, axis=0),  # halves
    ],
)
def test_what_says_too_little_is_flat(values: np.ndarray) -> None:
    assert is_flat(phash(Image.fromarray(values.astype(np.uint8))))


def test_ties_are_ties_on_every_machine() -> None:
    blocks = np.kron(np.random.default_rng(3).integers(0, 256, (4, 4, 1)), np.ones((8, 8, 3)))
    picture = Image.fromarray(blocks.astype(np.uint8))
    moved = Image.fromarray(np.kron(blocks, np.ones((4, 4, 1))).astype(np.uint8))
    low = scipy.fft.dctn(np.asarray(picture.convert("L"), np.float64))[:8, :8]
    assert np.isclose(low, np.median(low), atol=1e-8).sum() > 1  # where round-off would decide
    assert phash(picture) % 2**BITS == int("".join("01"[int(b)] for b in (low > np.median(low) + 1e-7).ravel()), 2)
    assert phash(moved) == phash(moved.copy())


@given(signed, signed)
def test_distance_counts_the_bits_that_differ(one: int, other: int) -> None:
    expected = bin(one % 2**BITS ^ other % 2**BITS).count("1")
    assert distance(one, other) == distance(other, one) == expected
    assert distances(np.array([one]), np.array([other])).tolist() == [expected]


def test_duckdb_agrees_on_what_is_flat() -> None:
    values = [0, -1, -(2**63), 2**23 - 1, 2**24 - 1, -(2**41), -(2**40), 0x0F0F0F0F0F0F0F0F]
    with duckdb.connect() as base:
        rows = base.execute(f"SELECT {flat_sql('value')} FROM (SELECT unnest(?) AS value)", [values]).fetchall()
    assert [row[0] for row in rows] == [is_flat(value) for value in values]
