from dataclasses import FrozenInstanceError

import pytest
import torch

from bigdiff.engine.partition import Partition, Placed


def test_a_partition_is_a_live_view_with_a_fixed_place() -> None:
    flat = torch.arange(6.0)
    partition = Partition(layout=(Placed(name="a", shape=(2, 3), offset=0),), total=6, start=2, master=flat[2:4])
    partition.master.add_(1)
    assert flat.tolist() == [0, 1, 3, 4, 4, 5]
    with pytest.raises(FrozenInstanceError):
        partition.start = 0  # type: ignore[misc]
