import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.runtime import seeding

POSITIONS = torch.arange(4096)


# Known answers of Random123's kat_vectors for philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = seeding.philox(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in words) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 20), st.integers(1, 9), st.integers(0, 9))
def test_compiled_code_draws_what_torch_does(key: int, start: int, blocks: int, count: int) -> None:
    given = ((key, key ^ 0xABCDEF), 5, torch.arange(start, start + count), blocks)
    assert torch.equal(seeding.by_cpu(*given), seeding.by_torch(*given))
    assert seeding.by_cpu(*given).shape == (count, 4 * blocks)
    every_other = torch.arange(start, start + 2 * count)[::2]
    assert torch.equal(
        seeding.by_cpu(given[0], 5, every_other, blocks), seeding.by_torch(given[0], 5, every_other, blocks)
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(1, 9))
def test_a_position_draws_the_same_whatever_its_batch(seed: int, start: int, count: int) -> None:
    positions = torch.arange(start, start + count)
    together = seeding.normal(seed, "noise", positions, (2, 3))
    alone = torch.cat([seeding.normal(seed, "noise", positions[i : i + 1], (2, 3)) for i in range(count)])
    assert torch.equal(together, alone)


def test_purposes_seeds_and_positions_differ() -> None:
    draws = [
        seeding.normal(1, "noise", POSITIONS[:2], (64,)),
        seeding.normal(1, "posterior", POSITIONS[:2], (64,)),
        seeding.normal(2, "noise", POSITIONS[:2], (64,)),
        seeding.normal(1 + 2**32, "noise", POSITIONS[:2], (64,)),
        seeding.normal(1, "noise", POSITIONS[:2] + 2**32, (64,)),
    ]
    rows = torch.cat(draws)
    assert len(torch.unique(rows, dim=0)) == len(rows)
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 0.5


def test_normal_is_standard_normal() -> None:
    values = seeding.normal(3, "noise", POSITIONS, (4, 8, 8)).double().flatten()
    count = len(values)
    assert abs(values.mean()) < 4 / math.sqrt(count)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / count)
    inside = (values.abs() < 1).double().mean()
    assert abs(inside - math.erf(1 / math.sqrt(2))) < 4 * math.sqrt(0.25 / count)
    assert torch.isfinite(values).all()


def test_uniform_and_integers_are_even() -> None:
    values = seeding.uniform(3, "text_dropout", POSITIONS)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 0.5) < 4 / math.sqrt(12 * len(values))
    numbers = seeding.integers(3, "timestep", torch.arange(100_000), 1000)
    counts = torch.bincount(numbers, minlength=1000).double()
    assert len(counts) == 1000
    chi2 = ((counts - 100) ** 2 / 100).sum()
    assert abs(chi2 - 999) < 5 * math.sqrt(2 * 999)


def test_purpose_numbers_are_unique() -> None:
    assert len(set(seeding.PURPOSES.values())) == len(seeding.PURPOSES)


def test_uniform_has_53_bits_and_stays_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = torch.full((1, 2), 2**32 - 1, dtype=torch.int64)
    monkeypatch.setattr(seeding, "bits", lambda *given: largest)
    assert seeding.uniform(1, "stratum", POSITIONS[:1]).item() == 1 - 2.0**-53
    monkeypatch.undo()
    drawn = seeding.uniform(1, "stratum", POSITIONS)
    assert drawn.dtype == torch.float64 and (drawn * 2.0**53 % 2.0**29 != 0).all()  # a float32 has zeros there
