import itertools

import pytest
import torch

from bigdiff.config.schema import Optim
from bigdiff.engine import optim

STEPS = 1000


def rates(settings: Optim, *steps: int) -> list[float]:
    return [optim.learning_rate(settings, step, STEPS) for step in steps]


def test_linear_warm_up_as_in_the_sd_configs() -> None:
    settings = Optim(lr=1e-4, warmup_steps=100)
    assert rates(settings, 0, 50, 100, 999) == pytest.approx([1e-10, 5.000005e-5, 1e-4, 1e-4])


@pytest.mark.parametrize(("schedule", "half"), [("cosine", 5e-5), ("linear", 5e-5), ("constant", 1e-4)])
def test_decay(schedule: str, half: float) -> None:
    decay = 0.0 if schedule == "constant" else 0.5
    settings = Optim(lr=1e-4, warmup_steps=0, schedule=schedule, decay_start=decay)  # type: ignore[arg-type]
    assert rates(settings, 0, 499, 500) == pytest.approx([1e-4] * 3)
    assert rates(settings, 750) == pytest.approx([half])
    assert rates(settings, STEPS) == pytest.approx([1e-4 if schedule == "constant" else 0.0])


def test_no_jump_between_neighbouring_steps() -> None:
    settings = Optim(lr=1e-4, warmup_steps=200, schedule="cosine", decay_start=0.1)
    values = rates(settings, *range(STEPS + 1))
    assert max(abs(a - b) for a, b in itertools.pairwise(values)) < 1e-6


def test_the_optimizer_is_the_papers_adamw() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    settings = Optim(lr=0.1, weight_decay=0.01)
    ours = optim.build([weight], settings)
    expected, m, v = weight.detach().clone(), torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(1, 6):
        gradient = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64) * step
        weight.grad = gradient.clone()
        ours.step()
        m = 0.9 * m + 0.1 * gradient  # Loshchilov & Hutter 2019, algorithm 2
        v = 0.999 * v + 0.001 * gradient**2
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected - 0.1 * (update + 0.01 * expected)
    torch.testing.assert_close(weight.detach(), expected)
