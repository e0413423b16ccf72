import pytest
import torch

from bigdiff.models.ema import Ema, effective_decay


def test_warm_up_then_decay() -> None:
    assert effective_decay(0.9999, 0) == pytest.approx(0.1)
    assert effective_decay(0.9999, 90) == pytest.approx(0.91)
    assert effective_decay(0.9999, 10**6) == 0.9999


def test_partitions_average_like_the_whole() -> None:
    torch.manual_seed(0)
    whole = torch.randn(10)
    halves = [whole[:4].clone(), whole[4:].clone()]
    sharded, naive = Ema(halves, 0.9), whole.double().clone()
    for step in range(50):
        move = torch.randn(10)
        whole += move
        halves[0] += move[:4]
        halves[1] += move[4:]
        sharded.update(halves, step)
        decay = min(0.9, (1 + step) / (10 + step))
        naive = decay * naive + (1 - decay) * whole.double()
    torch.testing.assert_close(torch.cat(sharded.shadow).double(), naive, rtol=1e-6, atol=1e-6)
