import json
from collections.abc import Callable

import pytest

from bigdiff.metrics.meters import Slowest, slowest

SCRIPT = """
import json, time, torch
from bigdiff.metrics.meters import BINS, Meters
from bigdiff.runtime.world import enter, leave
w = enter(60)
meters = Meters(1000, w)
# each rank sees other timesteps: rank 0 the first half, rank 1 the second
timesteps = torch.arange(500) + 500 * w.rank
losses = timesteps.float()
meters.add(3 * losses.mean(), losses, timesteps, 1e-6 * (w.rank + 1))
meters.add(3 * (losses + 2).mean(), losses + 2, timesteps, 0.0)
meters.add_terms({"kl": torch.tensor(w.rank + 1.0), "adversarial": torch.tensor(7.0)})
meters.add_terms({"kl": torch.tensor(w.rank + 2.0)})
with meters.forward():
    time.sleep(0.05 * (1 + 2 * w.rank))
first = meters.take()
meters.add(torch.ones(()), torch.ones(1), torch.tensor([999]), 0.0)
second = meters.take(0.01 * (1 + w.rank))
meters.add(torch.tensor(2.0), torch.ones(3), None, 0.0)  # a task without noise levels
meters.add(torch.tensor(4.0), torch.ones(1), None, 0.0)
third = meters.take()
leave()
readings = (first, second, third)
slow = [[one.slowest.rank, one.slowest.ratio] for one in readings]
print(json.dumps([one.communication_fraction for one in readings]))
print(json.dumps(slow))
print(json.dumps([[r.loss, list(r.loss_by_bin), r.images_per_second, r.data_wait_fraction, r.terms] for r in readings]))
"""


def test_means_are_over_all_ranks_and_start_afresh(run_ranks: Callable[..., list[str]]) -> None:
    outputs = [output.splitlines() for output in run_ranks(SCRIPT, 2)]
    told, slow = [json.loads(lines[-1]) for lines in outputs], [json.loads(lines[-2]) for lines in outputs]
    for (loss, bins, speed, wait, terms), second, third in told:
        assert loss == pytest.approx(3 * (sum(range(1000)) / 1000 + 1))
        assert bins == pytest.approx([100 * number + 49.5 + 1 for number in range(10)])
        assert speed > 0
        assert 0 < wait < 1
        assert second[0] == 1.0
        assert second[1] == [None] * 9 + [1.0] and second[4] == {}
        assert terms == pytest.approx({"kl": 2.0, "adversarial": 7.0})
        assert third[0] == 2.5 and third[1] == [None] * 10
    assert told[0][0][:2] == told[1][0][:2]
    # 0.05 s and 0.15 s in the forward pass; then nothing was timed
    assert slow[0] == slow[1] and slow[0][1:] == [[0, 1.0], [0, 1.0]]
    assert slow[0][0][0] == 1 and 1 < slow[0][0][1] <= 2
    for lines, (_, (_, _, speed, *_), _) in zip(outputs, told, strict=True):
        unknown, known, also = json.loads(lines[-3])  # each of its own clock; two images were seen
        assert (unknown, also) == (None, None) and known == pytest.approx(0.015 * speed / 2)


def test_the_slowest_is_compared_with_the_median() -> None:
    assert slowest([1.0, 1.0, 3.0, 1.0, 2.0]) == Slowest(rank=2, ratio=3.0)
    assert slowest([2.0]) == Slowest(rank=0, ratio=1.0)
    assert slowest([0.0, 0.0]) == Slowest(rank=0, ratio=1.0)
