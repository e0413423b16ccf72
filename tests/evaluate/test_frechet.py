import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity import metric_fid

from bigdiff.evaluate.frechet import Gaussian, Sums, squared_distance


def gaussian(mean: torch.Tensor, covariance: torch.Tensor) -> Gaussian:
    return Gaussian(mean=mean.double(), covariance=covariance.double(), count=None)


def features(seed: int, count: int, width: int) -> torch.Tensor:
    """Correlated, some of them never negative, of very different sizes: as a network's are."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=random) @ torch.randn(width, width, generator=random)
    return (mixed * torch.logspace(-2, 1, width) + seed).relu()


@pytest.mark.parametrize("width", [1, 3, 64])
def test_gaussians_that_commute_have_a_closed_form(width: int) -> None:
    """In one basis: the sum of (difference of means)^2 and of (difference of deviations)^2."""
    random = torch.Generator().manual_seed(width)
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))
    first, second = (torch.rand(width, generator=random, dtype=torch.float64) * 3 for _ in range(2))
    means = torch.randn(2, width, generator=random, dtype=torch.float64)
    one, other = (
        gaussian(mean, basis * deviation**2 @ basis.T) for mean, deviation in zip(means, (first, second), strict=True)
    )
    expected = float((means[0] - means[1]).square().sum() + (first - second).square().sum())
    assert squared_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert squared_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_two_dimensions_have_a_closed_form() -> None:
    """tr (AB)^(1/2) of positive 2 x 2 matrices is (tr AB + 2 (det AB)^(1/2))^(1/2)."""
    a, b = torch.tensor([[2.0, 0.7], [0.7, 1.0]]), torch.tensor([[0.5, -0.3], [-0.3, 3.0]])
    root = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float(torch.linalg.det(a @ b))))
    expected = float(a.trace() + b.trace()) - 2 * root
    zero = torch.zeros(2)
    assert squared_distance(gaussian(zero, a), gaussian(zero, b)) == pytest.approx(expected, rel=1e-6)


def test_it_is_what_the_libraries_compute() -> None:
    one, other = features(1, 500, 40), features(2, 400, 40)
    found = squared_distance(Sums.of(one).gaussian(), Sums.of(other).gaussian())
    statistics = [metric_fid.fid_features_to_statistics(part.double()) for part in (one, other)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert found == pytest.approx(theirs, rel=1e-8)
    root = scipy.linalg.sqrtm(statistics[0]["sigma"] @ statistics[1]["sigma"])  # as Heusel et al.'s own code
    means = np.square(statistics[0]["mu"] - statistics[1]["mu"]).sum()
    traces = sum(np.trace(each["sigma"]) for each in statistics)
    assert found == pytest.approx(means + traces - 2 * np.trace(root).real, rel=1e-8)
    assert squared_distance(Sums.of(other).gaussian(), Sums.of(one).gaussian()) == pytest.approx(found, rel=1e-9)


def test_a_singular_covariance_has_a_distance() -> None:
    """Fewer features than dimensions, and dead ones: from itself 0, from its shift the square of the shift."""
    few = features(3, 20, 64)
    few[:, 10] = 0
    one = Sums.of(few).gaussian()
    assert torch.linalg.matrix_rank(one.covariance) < 20
    assert squared_distance(one, one) == pytest.approx(0, abs=1e-4 * float(one.covariance.trace()))
    shifted = Sums.of(few.double() + 3.0).gaussian()
    assert squared_distance(one, shifted) == pytest.approx(64 * 9.0, rel=1e-4)


def test_sums_are_means_and_covariances() -> None:
    some = features(5, 300, 12) + 100  # far from 0: where sums lose digits
    found = Sums.of(some).gaussian()
    np.testing.assert_allclose(found.mean, some.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(some.double().numpy(), rowvar=False), rtol=1e-6, atol=1e-9)
    assert found.count == 300


def test_parts_add_up_to_the_whole() -> None:
    some = features(6, 101, 8)
    whole, parts = Sums.of(some), Sums.none(8)
    for part in some.split([0, 1, 30, 70]):
        parts += Sums.of(part)
    assert parts.count == whole.count
    torch.testing.assert_close(parts.first, whole.first, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.second, whole.second, rtol=1e-12, atol=1e-12)


RANKS = """
import json, torch
from bigdiff.evaluate.frechet import Sums, over_all
from bigdiff.runtime.world import enter, leave
w = enter(60)
some = torch.randn(96, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(5)
mine = Sums.none(5)
for place in range(w.rank, 12, w.size):
    mine += Sums.of(some[8 * place : 8 * place + 8])
found = over_all(mine, w)
made = found.gaussian()
w.barrier()
leave()
print(json.dumps([found.count, made.mean.tolist(), made.covariance.tolist()]))
"""


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_ranks_has_the_same_statistics(run_ranks: Callable[..., list[str]], size: int) -> None:
    told = [json.loads(output.splitlines()[-1]) for output in run_ranks(RANKS, size)]
    some = torch.randn(96, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(5)
    for count, mean, covariance in told:
        assert count == 96
        np.testing.assert_allclose(mean, some.double().mean(0), rtol=1e-6)
        np.testing.assert_allclose(covariance, np.cov(some.double().numpy(), rowvar=False), rtol=1e-6, atol=1e-9)


def test_what_has_no_distance_is_refused() -> None:
    one, two = gaussian(torch.zeros(2), torch.eye(2)), gaussian(torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match="of 2 and of 3 numbers"):
        squared_distance(one, two)
    with pytest.raises(ValueError, match="not finite"):
        squared_distance(one, gaussian(torch.tensor([0.0, math.nan]), torch.eye(2)))
    with pytest.raises(ValueError, match="1 features have no covariance"):
        Sums.of(torch.zeros(1, 2)).gaussian()
