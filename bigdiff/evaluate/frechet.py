"""The Frechet distance between two sets of features, each seen as a Gaussian (Dowson & Landau 1982).

d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2), with means m and unbiased covariances S, in float64. FID
is this number for the 2,048 pooled features of Inception v3 (Heusel et al. 2017). Few pictures bias it upwards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bigdiff.runtime.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussian:
    """A set of features by mean and covariance, float64 on the CPU."""

    mean: Tensor  # [D]
    covariance: Tensor  # [D, D]
    count: int | None  # features that it was made of; None where a file does not say


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """What a mean and a covariance are made of: float64 sums over features. Those of disjoint parts of a set add up."""

    count: int
    first: Tensor  # [D]: sum of x
    second: Tensor  # [D, D]: sum of x x^T

    @classmethod
    def none(cls, width: int, device: torch.device | str = "cpu") -> "Sums":
        """Of no features of `width` numbers."""
        empty = torch.zeros(width, width + 1, dtype=torch.float64, device=device)
        return cls(count=0, first=empty[:, 0].clone(), second=empty[:, 1:].clone())

    @classmethod
    def of(cls, features: Tensor) -> "Sums":
        """Of features [N, D]."""
        exact = features.to(torch.float64)
        return cls(count=len(exact), first=exact.sum(dim=0), second=exact.T @ exact)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(count=self.count + other.count, first=self.first + other.first, second=self.second + other.second)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance.

        The sums lose about as many digits as a mean's square is larger than its variance: of float64's sixteen, for
        Inception's features, two.

        Raises:
            ValueError: of fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} features have no covariance")
        first, second = self.first.cpu(), self.second.cpu()
        mean = first / self.count
        covariance = (second - torch.outer(first, mean)) / (self.count - 1)
        return Gaussian(mean=mean, covariance=(covariance + covariance.T) / 2, count=self.count)


def over_all(sums: Sums, world: World) -> Sums:
    """The sums over the features of all processes, on each of them; collective."""
    count = torch.tensor([float(sums.count)], dtype=torch.float64, device=sums.first.device)
    total = world.total(torch.cat((count, sums.first, sums.second.flatten()))).to(sums.first.device)
    width = len(sums.first)
    return Sums(
        count=round(total[0].item()), first=total[1 : 1 + width], second=total[1 + width :].reshape(width, width)
    )


def squared_distance(one: Gaussian, other: Gaussian) -> float:
    """d^2 as above, at least 0.

    tr (S_1 S_2)^(1/2) is the sum of the roots of the eigenvalues of S_1^(1/2) S_2 S_1^(1/2), which is symmetric: real
    eigenvalues also where a covariance is singular, for which the root of S_1 S_2 itself may not be found. Those that
    rounding makes negative are 0.

    Raises:
        ValueError: for Gaussians of different widths, or numbers that are not finite.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"features of {len(one.mean)} and of {len(other.mean)} numbers")
    for part in (one.mean, one.covariance, other.mean, other.covariance):
        if not bool(torch.isfinite(part).all()):
            raise ValueError("a mean or a covariance is not finite")
    values, vectors = torch.linalg.eigh(one.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ other.covariance @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    means = (one.mean - other.mean).square().sum()
    spread = one.covariance.trace() + other.covariance.trace()
    return max(0.0, float(means + spread - 2 * cross))
