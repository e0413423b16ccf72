import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.config.schema import Diffusion
from bigdiff.diffusion import timesteps, weighting
from bigdiff.diffusion.schedule import alphas_cumprod
from bigdiff.runtime.seeding import integers

CPU = torch.device("cpu")
DRAWS = ("independent", "stratified", "sobol")
NORMAL = Diffusion(timesteps="logit_normal", logit_mean=0.4, logit_std=1.2)


def drawn(diffusion: Diffusion, seed: int, positions: torch.Tensor, total: int = 64) -> torch.Tensor:
    return timesteps.build(diffusion, total, CPU).draw(seed, positions)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """In standard deviations from its mean, for many cells."""
    cells = len(counts)
    assert float(counts.sum()) == pytest.approx(float(expected.sum()))
    return float((((counts - expected) ** 2 / expected).sum() - (cells - 1)) / math.sqrt(2 * (cells - 1)))


def test_the_default_is_uniform_and_independent_as_it_always_was() -> None:
    positions = torch.arange(2**33, 2**33 + 500)
    assert torch.equal(drawn(Diffusion(), 7, positions), integers(7, "timestep", positions, 1000))


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("diffusion", [Diffusion(), NORMAL], ids=lambda one: one.timesteps)
def test_a_position_draws_the_same_in_any_batch_and_order(diffusion: Diffusion, draws: str) -> None:
    chosen = replace(diffusion, timestep_draws=draws)  # type: ignore[arg-type]
    positions = torch.arange(64 * 5, 64 * 9)  # four steps
    whole = drawn(chosen, 3, positions)
    for ranks in (2, 4):
        parts = [drawn(chosen, 3, part) for part in positions.view(4, ranks, -1).transpose(0, 1).flatten(1)]
        assert torch.equal(torch.stack(parts).view(ranks, 4, -1).transpose(0, 1).flatten(), whole)
    assert torch.equal(drawn(chosen, 3, positions.flip(0)).flip(0), whole)
    assert not torch.equal(drawn(chosen, 4, positions), whole)
    assert whole.dtype == torch.int64
    assert int(whole.min()) >= 0
    assert int(whole.max()) < 1000


@pytest.mark.parametrize("draws", ["independent", "stratified"])
@pytest.mark.parametrize("diffusion", [Diffusion(), NORMAL], ids=lambda one: one.timesteps)
def test_a_lane_follows_the_law(diffusion: Diffusion, draws: str) -> None:
    """The first sample of every step alone: no place in the batch has timesteps of its own."""
    chosen = replace(diffusion, timestep_draws=draws, train_timesteps=100)  # type: ignore[arg-type]
    counts = torch.bincount(drawn(chosen, 5, 24 * torch.arange(20_000), total=24), minlength=100).double()
    assert abs(chi_square(counts, 20_000 * probabilities(chosen))) < 4


def test_a_lane_of_sobol_follows_the_law() -> None:
    shares = timesteps.sobol(5, 64 * torch.arange(4096))
    counts = torch.bincount((shares * 64).long(), minlength=64).double()
    assert abs(chi_square(counts, torch.full((64,), 64.0))) < 4


def probabilities(diffusion: Diffusion) -> torch.Tensor:
    """Of each timestep, by the law's distribution function from the standard library."""
    count, law = diffusion.train_timesteps, NormalDist(diffusion.logit_mean, diffusion.logit_std or 1.0)
    below = [
        step / count if diffusion.timesteps == "uniform" else law.cdf(math.log(step / (count - step)))
        for step in range(1, count)
    ]
    return torch.tensor([0.0, *below, 1.0], dtype=torch.float64).diff()


def test_logit_normal_has_the_published_density() -> None:
    torch.testing.assert_close(
        torch.cat((torch.zeros(1), timesteps.edges(NORMAL), torch.ones(1))).double().diff(),
        probabilities(NORMAL),
        rtol=1e-9,
        atol=1e-12,
    )
    generator = torch.Generator().manual_seed(0)
    theirs = compute_density_for_timestep_sampling("logit_normal", 100_000, 0.4, 1.2, generator=generator)
    counts = torch.bincount((theirs * 50).long(), minlength=50).double()
    short = replace(NORMAL, train_timesteps=50)
    assert abs(chi_square(counts, 100_000 * probabilities(short))) < 4
    assert drawn(replace(NORMAL, logit_mean=2.0), 0, torch.arange(999)).double().mean() > 700  # above 0: more noise


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**31), st.integers(1, 200))
def test_stratified_covers_each_stratum_once_a_step(seed: int, step: int, total: int) -> None:
    positions = torch.arange(step * total, (step + 1) * total)
    strata = (timesteps.stratified(seed, positions, total) * total).long()
    assert sorted(strata.tolist()) == list(range(total))


def test_the_strata_are_permuted_anew_each_step() -> None:
    orders = (timesteps.stratified(1, torch.arange(64 * 200), 64) * 64).long().view(200, 64)
    assert len(torch.unique(orders, dim=0)) == 200
    neighbours = (64 * torch.arange(6300)[:, None] + torch.arange(2)).flatten()
    first, second = (timesteps.stratified(1, neighbours, 64) * 64).long().view(-1, 2).unbind(1)
    counts = torch.bincount((second - first) % 64, minlength=64)[1:].double()
    assert abs(chi_square(counts, torch.full((63,), 100.0))) < 4  # neighbours are no fixed distance apart


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**28), st.integers(0, 9))
def test_every_aligned_block_of_sobol_is_stratified(seed: int, block: int, power: int) -> None:
    size = 2**power
    shares = timesteps.sobol(seed, torch.arange(block * size, (block + 1) * size))
    assert sorted((shares * size).long().tolist()) == list(range(size))


def test_sobol_shuffles_each_block() -> None:
    orders = (timesteps.sobol(1, torch.arange(64 * 200)) * 64).long().view(200, 64)
    assert len(torch.unique(orders, dim=0)) == 200
    assert len(set(orders[:, 0].tolist())) > 50
    fine = timesteps.sobol(1, torch.arange(64)) * 64 % 1  # within the strata, too, every sample by itself
    assert len(set(fine.tolist())) == 64
    assert float(fine.std()) == pytest.approx(12**-0.5, abs=0.1)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
# measured 300 and more; logit-normal with eps 9 to 25, as its few clean timesteps have all the small weights
@pytest.mark.parametrize(("law", "factor"), [(Diffusion(), 100), (NORMAL, 4)], ids=["uniform", "logit_normal"])
def test_even_draws_lower_the_variance_of_a_batch(law: Diffusion, factor: int, target: str) -> None:
    """Of the mean loss weight of batches of 64; and the mean stays."""
    chosen = replace(law, prediction_type=target, weighting="min_snr", snr_gamma=5.0)  # type: ignore[arg-type]
    weights = weighting.weights(chosen, alphas_cumprod(chosen))
    means = {
        draws: weights[drawn(replace(chosen, timestep_draws=draws), 2, torch.arange(64 * 300))].view(300, 64).mean(1)  # type: ignore[arg-type]
        for draws in DRAWS
    }
    chance = float(means["independent"].var())
    for draws in ("stratified", "sobol"):
        assert float(means[draws].var()) < chance / factor
        error = math.sqrt(chance / 300)
        assert float(means[draws].mean()) == pytest.approx(float(means["independent"].mean()), abs=4 * error)
        assert float(means[draws].mean()) == pytest.approx(float((weights * probabilities(chosen)).sum()), rel=0.01)
