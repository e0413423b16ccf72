import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.data import ledger
from bigdiff.data.recount import run_digest
from bigdiff.data.stream import digest


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_a_runs_digest_is_that_of_its_micro_batches(batches: int, micro: int, seed: int) -> None:
    samples = np.random.default_rng(seed).integers(0, 2**40, (3, batches * micro))
    each = [digest(*samples[:, at : at + micro]) for at in range(0, batches * micro, micro)]
    assert run_digest(samples, batches) == ledger.combined(each)
    assert run_digest(samples[:, ::-1], batches) == ledger.combined(
        [digest(*samples[:, ::-1][:, at : at + micro]) for at in range(0, batches * micro, micro)]
    )
