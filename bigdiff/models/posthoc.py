"""Power-function averages of the weights, and any of them from snapshots of a few.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C. After
t updates the average is that of all weights so far with the profile p(tau) = (g + 1) tau^g / t^(g + 1) on [0, t]: its
width grows with the run, and what the network was at first is forgotten. It is named by its relative width, sigma_rel,
the profile's standard deviation over t. Times are counted in updates since the average began.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bigdiff.config.averages import WIDEST
from bigdiff.config.errors import UsageError

Floats = npt.NDArray[np.float64]
ROUNDING: Final = 2.0**-24  # relative error of an average that is tracked and stored in single precision


def exponent(width: float) -> float:
    """The exponent g > 0 whose profile has the relative width `width`: 16.97 for 0.05, 6.94 for 0.10.

    With s = width^-2, eq. 4 becomes the cubic g^3 + 7 g^2 + (16 - s) g + (12 - s) = 0, whose coefficients change their
    sign once: it has one positive root, and the other two have a negative real part.

    Raises:
        UsageError: when no positive exponent has this width.
    """
    if not 0 < width < WIDEST:
        raise UsageError(f"a relative width of {width} is not in (0, {WIDEST:.4f})")
    inverse = width**-2
    return float(np.roots((1.0, 7.0, 16.0 - inverse, 12.0 - inverse)).real.max())


def kept(gamma: float, time: int) -> float:
    """beta_gamma(t) of eq. 3: the share of the old average in that after update `time`; 0 at the first, 1.

    So the average after t updates holds the weights of update i with (i / t)^(g + 1) - ((i - 1) / t)^(g + 1), which
    is the profile's integral over [i - 1, i].
    """
    return float((1.0 - 1.0 / time) ** (gamma + 1.0))


def inner(times: Floats, gammas: Floats, others: Floats, other_gammas: Floats) -> Floats:
    """Integral of the product of two profiles, for arrays that broadcast.

    The product of two powers over [0, the earlier time], with what the later profile has grown since.
    """
    low, high = np.minimum(times, others), np.maximum(times, others)
    later = np.where(times < others, other_gammas, gammas)
    overlap: Floats = (gammas + 1) * (other_gammas + 1) / (gammas + other_gammas + 1) * (low / high) ** later / high
    return overlap


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A stored average: the updates it had seen, and its relative width."""

    time: int
    width: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """The sum of snapshots, each times its factor, that comes closest to a profile."""

    factors: tuple[float, ...]  # of the snapshots in their order; they sum to 1
    error: float  # L2 distance of the mixture's profile from the wanted one, relative to that one's norm


def mixture(snapshots: Sequence[Snapshot], time: int, width: float) -> Mixture:
    """The average of relative width `width` after `time` updates as a mixture of `snapshots`, by least squares.

    Minimises |sum x_i p_i - p|^2 / |p|^2 + sum (r x_i)^2 under sum x_i = 1 in float64, r = ROUNDING. The second term
    is the variance that rounding adds: without it, snapshots of nearly one time get huge factors of opposite signs.
    """
    times = np.array([one.time for one in snapshots], dtype=np.float64)
    gammas = np.array([exponent(one.width) for one in snapshots])
    at, gamma = np.array(float(time)), np.array(exponent(width))
    norm = float(inner(at, gamma, at, gamma))
    products = inner(times[:, None], gammas[:, None], times, gammas) / norm
    wanted = inner(times, gammas, at, gamma) / norm
    count = len(snapshots)
    system = np.ones((count + 1, count + 1))  # its last row and column are the constraint and its multiplier
    system[:count, :count] = products + ROUNDING**2 * np.eye(count)
    system[count, count] = 0.0
    factors = np.linalg.solve(system, np.append(wanted, 1.0))[:count]
    square = float(factors @ products @ factors - 2 * factors @ wanted + 1.0)
    return Mixture(factors=tuple(factors.tolist()), error=max(square, 0.0) ** 0.5)
