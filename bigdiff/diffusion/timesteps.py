"""Which timestep each sample position of a run gets: a law of t / T, and how evenly a batch covers it.

A draw is a number u in [0, 1) computed from (seed, position), pushed through the inverse of the law's distribution
function. `stratified` and `sobol` make the u of a batch, or of any stretch of the run, more even than chance does,
without changing the law of any single one: the loss stays the same in the mean and loses variance (Kingma et al. 2021
draw a batch's timesteps for the same reason from one regular grid with a random start).
"""

from dataclasses import dataclass

import torch

from bigdiff.config.schema import Diffusion
from bigdiff.runtime.seeding import Purpose, bits, integers, uniform

DIGITS = 48  # binary digits of a position and of a Sobol number: more samples than any run sees


@dataclass(frozen=True, kw_only=True)
class Timesteps:
    """The draws of a stage; the same for a position whatever its batch, rank or device."""

    diffusion: Diffusion
    total: int  # samples of a global batch: step s covers the positions s x total to (s + 1) x total - 1
    edges: torch.Tensor  # float64 [train_timesteps - 1]: the share of draws below timestep 1, 2, ...

    def draw(self, seed: int, positions: torch.Tensor) -> torch.Tensor:
        """Timesteps int64 [B] in [0, train_timesteps) of int64 `positions` [B]; no synchronisation with the device."""
        draws = self.diffusion.timestep_draws
        if draws == "stratified":
            shares = stratified(seed, positions, self.total)
        elif draws == "sobol":
            shares = sobol(seed, positions)
        elif self.diffusion.timesteps == "uniform":
            return integers(seed, "timestep", positions, self.diffusion.train_timesteps)
        else:
            shares = uniform(seed, "timestep", positions)
        return torch.searchsorted(self.edges, shares, right=True)


def build(diffusion: Diffusion, total: int, device: torch.device) -> Timesteps:
    """The draws of a stage with global batches of `total` samples."""
    return Timesteps(diffusion=diffusion, total=total, edges=edges(diffusion).to(device))


def edges(diffusion: Diffusion) -> torch.Tensor:
    """Share of the law below t = 1, 2, ..., train_timesteps - 1; timestep t takes what lies in [t, t + 1) / T.

    Uniform, or t / T = sigmoid(mean + std z) with z standard normal (Esser et al. 2024, eq. 19); 1 is the noisy end.
    """
    count = diffusion.train_timesteps
    shares = torch.arange(1, count, dtype=torch.float64) / count
    if diffusion.timesteps == "uniform":
        return shares
    below: torch.Tensor = torch.special.ndtr((torch.logit(shares) - diffusion.logit_mean) / diffusion.logit_std)
    return below


def stratified(seed: int, positions: torch.Tensor, total: int) -> torch.Tensor:
    """u in [0, 1), float64 [B]: of each step's `total` samples, one lies in each of `total` equal strata.

    Which one is a permutation computed from (seed, step): the rank of the sample's key among its step's keys. Every
    process computes all `total` keys of the step for each of its samples, rather than to ask the others.
    """
    steps, places = positions // total, positions % total
    keys = bits(seed, "stratum", steps, total)
    own = keys.gather(1, places[:, None])
    before = torch.arange(total, device=positions.device)[None, :] < places[:, None]  # settles equal keys
    strata = ((keys < own) | ((keys == own) & before)).sum(dim=1)
    return (strata + uniform(seed, "timestep", positions)) / total


def sobol(seed: int, positions: torch.Tensor) -> torch.Tensor:
    """u in [0, 1), float64 [B]: of any 2^k samples from a multiple of 2^k on, one lies in each of 2^k equal strata.

    The first dimension of Sobol's sequence (van der Corput's: the position's binary digits mirrored) under nested
    uniform scrambling (Owen 1995). The positions are scrambled in the same way before (Burley 2020, section 3), which
    shuffles every aligned block within itself: otherwise the k-th sample of each batch would always be in one stratum.
    """
    digits = torch.arange(DIGITS, device=positions.device)
    shuffled = _scrambled(seed, "sobol_order", positions)
    mirrored = (((shuffled[:, None] >> digits) & 1) << (DIGITS - 1 - digits)).sum(dim=1)
    return _scrambled(seed, "sobol", mirrored).to(torch.float64) / 2.0**DIGITS


def _scrambled(seed: int, purpose: Purpose, values: torch.Tensor) -> torch.Tensor:
    """Each of the DIGITS bits of `values` [B] flipped, or not, by a coin that all digits above it choose."""
    levels = torch.arange(DIGITS, device=values.device)
    nodes = (1 << levels) | (values[:, None] >> (DIGITS - levels))  # of the binary tree, each with its coin
    coins = bits(seed, purpose, nodes.reshape(-1), 1).reshape(nodes.shape) & 1
    return values ^ (coins << (DIGITS - 1 - levels)).sum(dim=1)
