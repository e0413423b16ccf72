from dataclasses import FrozenInstanceError

import pytest

from bigdiff.train.run import Outcome


def test_an_outcome_is_final() -> None:
    outcome = Outcome(step=4, samples_seen=256, finished=False)
    with pytest.raises(FrozenInstanceError):
        outcome.finished = True  # type: ignore[misc]
