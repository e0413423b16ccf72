from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.mixture import Cell, Source, cells, check, weights
from bigdiff.data.shares import WHOLE


def source(name: str, sizes: list[int], **shares: Any) -> Source:
    return Source(name=name, sizes=np.array(sizes), **shares)


def shares(sources: tuple[Source, ...], active: list[Cell] | None = None) -> list[Fraction]:
    whole = weights(sources, list(cells(sources)) if active is None else active)
    return [Fraction(weight, sum(whole)) for weight in whole]


def test_cells_are_the_shards_of_a_bucket_by_source_and_name() -> None:
    both = (
        source("a", [3, 4, 5, 0, 6], buckets=("tall", "wide", "tall", "empty", "wide"), repeat=1.5),
        source("b", [7, 8]),
    )
    found = [(cell.source, cell.bucket, cell.shards.tolist(), cell.samples, cell.limit) for cell in cells(both)]
    assert found == [(0, "tall", [0, 2], 8, 12), (0, "wide", [1, 4], 10, 15), (1, "", [0, 1], 15, None)]


def test_without_proportions_every_sample_counts_the_same() -> None:
    assert shares((source("a", [10, 20]), source("b", [30]))) == [Fraction(1, 2), Fraction(1, 2)]


def test_upsample_is_a_factor_on_the_natural_share() -> None:
    assert shares((source("a", [10], upsample=3.0), source("b", [30]))) == [Fraction(1, 2), Fraction(1, 2)]


def test_a_proportion_is_taken_first_and_the_rest_is_split_by_size() -> None:
    three = (source("a", [10], proportion=0.4), source("b", [20]), source("c", [40]))
    assert shares(three) == [Fraction(2, 5), Fraction(1, 5), Fraction(2, 5)]


def test_a_source_splits_its_share_over_its_buckets_by_their_samples() -> None:
    both = (source("a", [10, 30], buckets=("x", "y"), proportion=0.4), source("b", [20]))
    assert shares(both) == [Fraction(1, 10), Fraction(3, 10), Fraction(3, 5)]


def test_when_a_source_ends_the_rule_holds_for_the_others() -> None:
    three = (source("a", [10], proportion=0.4), source("b", [20]), source("c", [40]))
    a, b, c = cells(three)
    assert shares(three, [a, c]) == [Fraction(2, 5), Fraction(3, 5)]  # c takes b's: a keeps its proportion
    assert shares(three, [b, c]) == [Fraction(1, 3), Fraction(2, 3)]
    assert shares(three, [a]) == [1]


def test_thirds_as_floats_are_thirds() -> None:
    three = tuple(source(name, [size], proportion=1 / 3) for name, size in (("a", 1), ("b", 50), ("c", 7)))
    check(three)
    assert shares(three) == [Fraction(1, 3)] * 3


def test_shares_without_a_small_common_denominator_are_next_to_exact() -> None:
    primes = (999_983, 999_979, 999_961, 999_959, 999_953)
    many = tuple(source(str(prime), [prime - 1, 1], buckets=("x", "y"), proportion=0.2) for prime in primes)
    found = shares(many)
    assert sum(found) == 1
    for share, cell in zip(found, cells(many), strict=True):
        assert abs(share - Fraction(cell.samples, 5 * many[cell.source].samples)) <= Fraction(1, WHOLE)


def test_a_share_that_would_round_to_nothing_is_refused() -> None:
    primes = (999_999_999_989, 999_999_999_961, 999_999_999_959)
    many = tuple(source(f"set {prime}", [prime - 1, 1], buckets=("x", "y"), proportion=1 / 3) for prime in primes)
    with pytest.raises(UsageError, match=r"set 999999999\d+: its share .* bucket 'y' would never be drawn; give"):
        weights(many, list(cells(many)))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((), "no source is given"),
        ((source("a", [0]),), "a has no samples"),
        ((source("a", [1], proportion=0.7), source("b", [1], proportion=0.4)), "add up to 1.1, which is over 1"),
        ((source("a", [1], proportion=0.7), source("b", [1], proportion=0.2)), "add up to 0.9, not 1"),
        ((source("a", [1], proportion=1.0), source("b", [1])), "b has no proportion and the others' add up to 1"),
        ((source("a", [1], proportion=0.0), source("b", [1])), "a: proportion is 0.0, it must be in"),
        ((source("a", [1], proportion=1e-9), source("b", [1])), "a: proportion is 1e-09, .* at least 1e-6"),
        ((source("a", [1], proportion=-0.1), source("b", [1])), "a: proportion is -0.1"),
        ((source("a", [1], proportion=0.5, upsample=2.0), source("b", [1])), "a: upsample has no effect beside"),
        ((source("a", [1], upsample=2.0),), "a: upsample has no effect, as no other source"),
        ((source("a", [1], upsample=0.0), source("b", [1])), "a: upsample is 0.0"),
        ((source("a", [1], repeat=0.0),), "a: repeat is 0.0"),
        ((source("a", [1], repeat=float("inf")),), "a: repeat is inf, it must be a finite number"),
        ((source("a", [1], until=0),), "a: until is 0, so it would give nothing"),
    ],
)
def test_what_cannot_be_given_or_has_no_effect_is_refused(sources: tuple[Source, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(sources)


def test_a_mixture_in_order_passes() -> None:
    check((source("a", [1], proportion=0.5, repeat=2.0), source("b", [1], upsample=2.0), source("c", [9], until=100)))
