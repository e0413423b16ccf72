"""The mathematics of post-hoc reconstruction, against published values, integration and brute force in float64."""

import numpy as np
import pytest

from bigdiff.config.averages import WIDEST
from bigdiff.config.errors import UsageError
from bigdiff.models.posthoc import ROUNDING, Floats, Mixture, Snapshot, exponent, inner, kept, mixture

STEPS = 1000


def tracked(width: float, weights: Floats) -> Floats:
    """The average after each row of `weights` [t, n], as eq. 3 updates it."""
    average, told = np.zeros(weights.shape[1]), []
    for number, row in enumerate(weights):
        share = kept(exponent(width), number + 1)
        average = share * average + (1 - share) * row
        told.append(average)
    return np.array(told)


def stored(every: int) -> list[Snapshot]:
    return [Snapshot(time=time, width=width) for width in (0.05, 0.10) for time in range(every, STEPS + 1, every)]


def profile_error(mixed: Mixture, snapshots: list[Snapshot], width: float) -> float:
    """L2 distance of the mixture's true profile from the tracked one's, by averaging unit vectors."""
    profiles = {one: tracked(one, np.eye(STEPS)) for one in {width, *(s.width for s in snapshots)}}
    made = sum(x * profiles[s.width][s.time - 1] for x, s in zip(mixed.factors, snapshots, strict=True))
    wanted = profiles[width][-1]
    return float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_published_exponents(width: float, gamma: float) -> None:
    assert exponent(width) == pytest.approx(gamma, abs=0.005)  # Karras et al. 2024, section 3.1


@pytest.mark.parametrize("width", [0.001, 0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_exponents_profile_has_that_width(width: float) -> None:
    gamma = exponent(width)
    assert np.sqrt(gamma + 1) / (gamma + 2) / np.sqrt(gamma + 3) == pytest.approx(width, rel=1e-9)  # eq. 4
    middles = (np.arange(2_000_000) + 0.5) / 2_000_000
    profile = (gamma + 1) * middles**gamma / len(middles)
    mean = (profile * middles).sum()
    assert profile.sum() == pytest.approx(1.0, abs=1e-6)
    assert np.sqrt((profile * (middles - mean) ** 2).sum()) == pytest.approx(width, rel=1e-5)


@pytest.mark.parametrize("width", [0.0, -0.1, WIDEST, 0.3])
def test_a_width_without_a_positive_exponent_is_refused(width: float) -> None:
    with pytest.raises(UsageError, match="is not in"):
        exponent(width)
    assert exponent(WIDEST - 1e-4) < 0.01


def test_updates_leave_the_profiles_integral_over_each_step() -> None:
    gamma, times = exponent(0.1), np.arange(201) / 200
    weights = tracked(0.1, np.eye(200))[-1]
    np.testing.assert_allclose(weights, np.diff(times ** (gamma + 1)), atol=1e-14)
    assert kept(gamma, 1) == 0.0


@pytest.mark.parametrize(("first", "second"), [((300, 0.05), (1000, 0.1)), ((1000, 0.2), (400, 0.08)), ((7, 0.1),) * 2])
def test_the_closed_form_is_the_integral_of_the_product(first: tuple[int, float], second: tuple[int, float]) -> None:
    middles = (np.arange(4_000_000) + 0.5) * (1000 / 4_000_000)
    profiles = [
        np.where(middles < time, (exponent(width) + 1) / time * (middles / time) ** exponent(width), 0.0)
        for time, width in (first, second)
    ]
    arguments = [np.float64(value) for time, width in (first, second) for value in (time, exponent(width))]
    assert float(inner(*arguments)) == pytest.approx(
        float((profiles[0] * profiles[1]).sum() * 1000 / 4_000_000), rel=2e-3
    )
    assert float(inner(*arguments)) == float(inner(*arguments[2:], *arguments[:2]))


# every 200 of 1000 steps, every 50 and every 10: 10, 40 and 200 snapshots of two widths
LIMITS = {0.03: (0.2, 0.03, 0.002), 0.08: (0.03, 0.003, 2e-4), 0.15: (0.08, 0.007, 4e-4), 0.20: (0.2, 0.02, 1e-3)}


@pytest.mark.parametrize(("width", "limits"), LIMITS.items())
def test_another_width_is_what_direct_tracking_gives_and_more_snapshots_come_closer(
    width: float, limits: tuple[float, ...]
) -> None:
    errors = []
    for every, limit in zip((200, 50, 10), limits, strict=True):
        snapshots = stored(every)
        mixed = mixture(snapshots, STEPS, width)
        errors.append(profile_error(mixed, snapshots, width))
        assert errors[-1] < limit
        assert mixed.error == pytest.approx(errors[-1], rel=0.05)  # what it says of itself is true
        assert sum(mixed.factors) == pytest.approx(1.0, abs=1e-12)
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


@pytest.mark.parametrize("width", LIMITS)
def test_the_weights_of_a_run_are_reconstructed(width: float) -> None:
    weights = 1.0 + np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 64)), axis=0) / np.sqrt(STEPS)
    averages = {one: tracked(one, weights).astype(np.float32).astype(np.float64) for one in (0.05, 0.10, width)}
    wanted, errors = averages[width][-1], []
    for every, limit in ((200, 2e-2), (50, 1e-3), (10, 2e-5)):
        snapshots = stored(every)
        mixed = mixture(snapshots, STEPS, width)
        made = sum(x * averages[s.width][s.time - 1] for x, s in zip(mixed.factors, snapshots, strict=True))
        errors.append(float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted)))
        assert errors[-1] < limit
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_a_tracked_width_is_its_own_last_snapshot() -> None:
    mixed = mixture(stored(50), STEPS, 0.05)
    assert mixed.error < 1e-7
    last = [s.time == STEPS and s.width == 0.05 for s in stored(50)]
    np.testing.assert_allclose(mixed.factors, np.array(last, float), atol=1e-10)


def test_snapshots_at_nearly_the_same_time_do_not_amplify_rounding() -> None:
    for near in ((999_999,), (999_997, 999_998, 999_999)):
        times = (500_000, *near, 1_000_000)
        mixed = mixture([Snapshot(time=time, width=width) for width in (0.05, 0.1) for time in times], 1_000_000, 0.01)
        assert np.linalg.norm(mixed.factors) * ROUNDING < 1e-5  # least squares alone: 1e7, as much noise as weights
        apart = [Snapshot(time=time, width=width) for width in (0.05, 0.1) for time in (500_000, 1_000_000)]
        assert mixed.error <= mixture(apart, 1_000_000, 0.01).error


def test_an_earlier_end_is_reconstructed_too() -> None:
    early = [one for one in stored(50) if one.time <= 500]
    assert mixture(early, 500, 0.08).error < 0.02
