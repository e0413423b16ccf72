import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.checkpoint.state import TrainState, Window
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Autoencoder, Recovery
from bigdiff.train import recovery
from bigdiff.train.recovery import FLOOR, Curve, Seen, deviations, first_save, judge, nonfinite_row, over_budget

RULES = Recovery(window=20)
STATE = TrainState(step=100, samples_seen=800)
POSITIVE = st.floats(1e-6, 1e6)


def curve(losses: list[float], norms: list[float] | None = None, window: int = 20) -> Curve:
    found = Curve()
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        found = found.after(loss, norm, window)
    return found


def wavy(count: int, spread: float = 0.1) -> list[float]:
    """Positive figures around 1, the logarithms of which are normal."""
    return np.exp(np.random.default_rng(0).normal(0, spread, count)).tolist()


@given(st.lists(POSITIVE, max_size=50), st.integers(1, 30))
def test_a_curve_keeps_the_newest_and_survives_as_text(losses: list[float], window: int) -> None:
    found = curve(losses, losses[::-1], window)
    assert found.losses == tuple(math.log(loss) for loss in losses[-window:])
    assert len(found.norms) == len(found.losses)
    assert Curve.parse(found.text(), window) == found
    assert Curve.parse(found.text(), 5).losses == found.losses[-5:]
    assert Curve.parse("", window) == Curve()


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=40), st.floats(-10, 10), st.floats(-5, 5))
def test_deviations_know_no_scale_and_are_never_of_less_than_the_floor(
    values: list[float], value: float, shift: float
) -> None:
    found = deviations(values, value)
    moved = deviations([one + shift for one in values], value + shift)
    assert moved == pytest.approx(found, rel=1e-6, abs=1e-6)
    assert abs(found) <= abs(value - float(np.median(values))) / FLOOR * (1 + 1e-9) + 1e-9
    assert deviations([1.0] * len(values), 1.0 + FLOOR) == pytest.approx(1)


def test_deviations_are_standard_deviations_of_a_normal_curve_and_deaf_to_outliers() -> None:
    values = np.random.default_rng(1).normal(3, 0.4, 20_001).tolist()
    assert deviations(values, 3 + 5 * 0.4) == pytest.approx(5, rel=0.03)
    spoiled = [1e3 if number % 20 == 0 else one for number, one in enumerate(values)]
    assert deviations(spoiled, 3 + 5 * 0.4) == pytest.approx(5, rel=0.12)


@pytest.mark.parametrize(
    ("seen", "action", "reason"),
    [
        (Seen(loss=1.1, norm=1.0, applied=True), "keep", ""),
        (Seen(loss=0.01, norm=0.01, applied=True), "keep", ""),  # downwards is no spike
        (Seen(loss=2.0, norm=1.0, applied=True), "keep", ""),
        (Seen(loss=4.0, norm=1.0, applied=True), "roll back", "loss spike"),
        (Seen(loss=1.0, norm=4.0, applied=True), "roll back", "gradient norm spike"),
        (Seen(loss=math.nan, norm=math.nan, applied=False), "skip", "non-finite loss"),
        (Seen(loss=math.inf, norm=1.0, applied=False), "skip", "non-finite loss"),
        (Seen(loss=1.0, norm=math.inf, applied=False), "skip", "non-finite gradient"),
        (Seen(loss=math.inf, norm=1.0, applied=True), "roll back", "non-finite loss"),  # too late to skip
    ],
)
def test_verdicts(seen: Seen, action: str, reason: str) -> None:
    found = judge(curve(wavy(20), wavy(20)), STATE, seen, RULES)
    assert (found.action, found.reason) == (action, reason)
    assert bool(found.detail) is (action != "keep")


def test_a_spike_is_seen_only_when_the_window_is_full_and_not_at_all_at_0() -> None:
    spike = Seen(loss=50.0, norm=50.0, applied=True)
    assert judge(curve(wavy(19)), STATE, spike, RULES).action == "keep"
    assert judge(curve(wavy(20)), STATE, spike, RULES).action == "roll back"
    assert judge(curve(wavy(20)), STATE, spike, replace(RULES, spike=0)).action == "keep"


def test_a_flat_curve_needs_a_real_rise() -> None:
    flat = curve([0.3] * 20)
    assert judge(flat, STATE, Seen(loss=0.3 * 1.9, norm=1, applied=True), RULES).action == "keep"
    found = judge(flat, STATE, Seen(loss=0.3 * 2.1, norm=1, applied=True), RULES)
    assert found.detail == "loss 0.63, 11 deviations above the median 0.3 of 20 steps"


def test_many_steps_in_a_row_that_are_not_finite_go_back() -> None:
    seen, state = Seen(loss=math.nan, norm=math.nan, applied=False), STATE
    rules = replace(RULES, nonfinite_in_a_row=3)
    for expected in ("skip", "skip", "roll back"):
        found = judge(Curve(), state, seen, rules)
        assert found.action == expected
        reason = found.reason if state.step != 101 else "non-finite gradient"
        state = state.without_update(8, reason)
    assert nonfinite_row(state) == 3
    assert "3 in a row" in found.detail
    assert nonfinite_row(state.after(8)) == 0
    assert judge(Curve(), state.after(8), seen, rules).action == "skip"
    spiked = TrainState(step=9, samples_seen=72, skipped=(Window(begin=2, end=9, reason="loss spike"),))
    assert nonfinite_row(spiked) == 0


def test_the_budget_is_a_share_of_the_stage() -> None:
    state = TrainState(step=60, samples_seen=480, skipped=(Window(begin=40, end=50, reason="loss spike"),))
    assert over_budget(state, 100, replace(RULES, budget=0.1)) == ""
    said = (
        "10 of the stage's 99 steps moved no weights, more than recovery.budget=0.1 allows, the last ones steps 40-49"
    )
    assert said in over_budget(state, 99, replace(RULES, budget=0.1))
    began = TrainState(step=5, samples_seen=5)
    assert over_budget(began, 10, replace(RULES, budget=0)) == ""
    assert "the last ones step 5 (x)" in over_budget(began.without_update(1, "x"), 10, replace(RULES, budget=0))


def test_a_run_saves_first_when_it_may_have_to_go_back() -> None:
    full = curve(wavy(20))
    assert first_save(full, False, RULES)
    assert not first_save(full, True, RULES)
    assert not first_save(curve(wavy(19)), False, RULES)
    assert not first_save(full, False, replace(RULES, spike=0))


def test_the_discriminators_first_step_begins_another_curve() -> None:
    stage = load_stage("512px")
    assert not recovery.another_regime(stage, 7)
    adversarial = replace(stage, model=replace(stage.model, autoencoder=Autoencoder(disc_start=7)))
    assert [recovery.another_regime(adversarial, step) for step in (6, 7, 8)] == [False, True, False]
    alone = replace(stage, model=replace(stage.model, autoencoder=Autoencoder(disc_start=7, disc_weight=0)))
    assert not recovery.another_regime(alone, 7)


@pytest.mark.parametrize(("batch", "samples"), [(32, 400_000), (2048, 10_000_000)])
def test_heavy_tailed_losses_raise_no_alarm(batch: int, samples: int) -> None:
    """Samples whose losses spread like exp(N(0, 1)); docs/recovery.md has the rates over far more steps."""
    losses = np.exp(np.random.default_rng(3).normal(size=(samples // batch, batch))).mean(1)
    found, rules = Curve(), Recovery()
    for loss in losses.tolist():
        seen = Seen(loss=loss, norm=loss, applied=True)
        assert judge(found, STATE, seen, rules).action == "keep"
        found = found.after(loss, loss, rules.window)
    assert len(found.losses) == rules.window
