import time

import pytest
import torch

from bigdiff.runtime.clock import Clock


def test_what_runs_is_added_up_until_it_is_taken() -> None:
    clock = Clock(torch.device("cpu"))
    assert clock.take() == 0.0
    began = time.perf_counter()
    for _ in range(2):
        with clock.running():
            time.sleep(0.02)
    took = time.perf_counter() - began
    assert 0.04 <= clock.take() <= took
    assert clock.take() == 0.0


def test_what_ends_by_an_exception_is_not_counted() -> None:
    clock = Clock(torch.device("cpu"))
    with pytest.raises(ValueError, match="no"), clock.running():
        raise ValueError("no")
    assert clock.take() == 0.0
