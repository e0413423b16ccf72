import json
import math
from collections.abc import Callable

import torch

from bigdiff.runtime import rates

SCRIPT = """
import json, sys, torch
from bigdiff.runtime import rates
from bigdiff.runtime.world import enter, leave
w = enter(60)
right = rates.all_reduce(w)
whole = torch.Tensor.copy_
if w.rank == 1:  # a network that loses a bit
    torch.Tensor.copy_ = lambda self, other, *more: whole(self, other + (torch.arange(len(self)) == 77), *more)
wrong = rates.all_reduce(w)
torch.Tensor.copy_ = whole
rounds = [{0: 1, 1: 0}, {1: 2, 2: 1}]
told = {"right": right, "wrong": wrong, "link": rates.links(w, rounds), "alone": rates.links(w, rounds[:1])}
told["clock"] = rates.clock(w)
w.barrier()
leave()
print(json.dumps(told))
"""


def test_exchange_between_processes(run_ranks: Callable[..., list[str]]) -> None:
    told = [json.loads(output.splitlines()[-1]) for output in run_ranks(SCRIPT, 3)]
    assert [one["right"][1] for one in told] == [True] * 3
    assert [one["wrong"][1] for one in told] == [False] * 3
    assert all(1e6 < one["right"][0] < 1e12 for one in told)
    assert all(1e6 < one["link"] < 1e12 for one in told)
    assert [bool(one["alone"]) for one in told] == [True, True, False]
    assert all(abs(one["clock"]) < 5 for one in told)


def test_rates_of_this_cpu() -> None:
    rate, product = rates.matmul(torch.device("cpu"))
    assert 1e8 < rate < 1e14
    numbers = torch.arange(512 * 512)
    left, right = (((numbers * step) % 251 - 125).double().view(512, 512) / 125 for step in (7, 11))
    assert math.isclose(product, float((left @ right).abs().mean()), rel_tol=1e-4)
    assert product > 1  # a product of nothing would be right on any device
    assert 1e7 < rates.copy(torch.device("cpu")) < 1e13
    assert rates.free(torch.device("cpu")) == 0
