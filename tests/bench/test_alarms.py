"""How often the default threshold takes an ordinary step for a spike, by simulation; and what it notices of a real one.

Steps are independent: each loss is the mean of a batch of samples whose losses follow a law. The rate is the mean over
many windows of the share of all steps that lie above the window's threshold, so it needs no alarm to be waited for.
"""

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bigdiff.config.schema import Recovery
from bigdiff.train.recovery import FLOOR, NORMAL, deviations

RESULTS = Path(__file__).parent / "results"
Array = npt.NDArray[np.float64]
Law = Callable[[np.random.Generator, tuple[int, int]], Array]
LEAST, POOL, STEPS, WINDOWS = 8, 4_000_000, {8: 4_000_000, 32: 4_000_000, 2048: 150_000}, 2000
HEIGHTS = (6, 8, 10, 12)


def epsilon(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    """A loss that falls a hundredfold with the noise level, as an eps target's does."""
    level = random.random(shape)
    return (0.9 * np.exp(-level / 0.04) + 0.35 * np.exp(-level / 0.25) + 0.006) * np.exp(
        0.5 * random.normal(size=shape)
    )


def velocity(random: np.random.Generator, shape: tuple[int, int]) -> Array:
    """A loss that rises fourfold with it, as a v target's does."""
    return (0.15 + 0.5 * random.random(shape)) * np.exp(0.4 * random.normal(size=shape))


LAWS: dict[str, Law] = {
    "eps-like over noise levels": epsilon,
    "v-like over noise levels": velocity,
    "exponential": lambda random, shape: random.exponential(size=shape),
    "lognormal, sigma 1": lambda random, shape: np.exp(random.normal(size=shape)),
    "lognormal, sigma 1.5": lambda random, shape: np.exp(1.5 * random.normal(size=shape)),
    "Pareto, exponent 3": lambda random, shape: random.pareto(3, shape) + 1,
    "square of Student's t, 3": lambda random, shape: random.standard_t(3, shape) ** 2,
}


def steps(law: Law, random: np.random.Generator) -> dict[int, Array]:
    """Logarithms of the losses of many steps, by batch size.

    Those of large batches are means over draws from one pool, whose tail ends at its 32 million samples.
    """
    pool = np.concatenate([law(random, (POOL // 40, LEAST)).mean(1) for _ in range(40)])
    found = {LEAST: np.log(pool)}
    for batch, count in STEPS.items():
        if batch != LEAST:
            total = np.zeros(count)
            for _ in range(batch // LEAST):
                total += pool[random.integers(0, POOL, count)]
            found[batch] = np.log(total * LEAST / batch)
    return found


def thresholds(logs: Array, window: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Medians and robust deviations of many windows, as the run computes them."""
    seen = logs[random.integers(0, len(logs), (WINDOWS, window))]
    middle = np.median(seen, axis=1)
    spread = np.maximum(NORMAL * np.median(np.abs(seen - middle[:, None]), axis=1), FLOOR)
    value = float(middle[0] + 3 * spread[0])
    assert deviations(seen[0].tolist(), value) == pytest.approx(3)
    return middle, spread


def alarms(logs: Array, ordered: Array, window: int, random: np.random.Generator) -> tuple[dict[float, float], float]:
    """False alarms per million steps by height, and the factor over the median at which the default height is."""
    middle, spread = thresholds(logs, window, random)
    above = {z: len(logs) - np.searchsorted(ordered, middle + z * spread) for z in HEIGHTS}
    rates = {z: 1e6 * float(count.mean()) / len(logs) for z, count in above.items()}
    return rates, float(np.median(np.exp(Recovery().spike * spread)))


def said(rates: dict[Any, float], count: int) -> str:
    least = 1e6 / count
    return "  ".join(f"{z}: {f'<{least:.1g}' if rate < least else f'{rate:.2g}':>6}" for z, rate in rates.items())


@pytest.mark.bench
def test_false_alarms_of_a_spike() -> None:
    random, rules, today = np.random.default_rng(0), Recovery(), datetime.now(UTC).date().isoformat()
    lines = [
        f"{today}, Python {platform.python_version()}, numpy {np.__version__}; false alarms per million steps of "
        f"one figure (a run has two: loss, gradient norm)",
        f"by height in robust deviations (recovery.spike, default {rules.spike:g}), over windows of {rules.window} "
        f"steps; '<': fewer than one in all simulated steps",
        f"rise: factor over the median loss from which on a step is a spike at the default (at least "
        f"{np.exp(rules.spike * FLOOR):.2f})",
        "",
    ]
    windows: dict[str, list[str]] = {}
    worst: dict[str, float] = {}
    for name, law in LAWS.items():
        for batch, logs in steps(law, random).items():
            ordered = np.sort(logs)
            rates, rise = alarms(logs, ordered, rules.window, random)
            lines.append(f"{name:27} batch {batch:4}  {said(rates, len(logs))}  rise {rise:.3g}")
            worst[name] = max(worst.get(name, 0.0), rates[10])
            if batch == 32:
                by_window = {window: alarms(logs, ordered, window, random)[0][10] for window in (20, 50, 200, 1000)}
                windows.setdefault(name, []).append(f"{name:27} batch {batch:4}  {said(by_window, len(logs))}")
    lines += ["", f"the same at height {rules.spike:g}, by length of the window (recovery.window)"]
    lines += [line for found in windows.values() for line in found]
    # what diffusion losses are like raises none in a run of a million steps; power-law tails do
    assert max(worst["eps-like over noise levels"], worst["v-like over noise levels"]) < 1
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-alarms.txt").write_text("\n".join(lines) + "\n")
