import pytest
import torch

from bigdiff.checkpoint.host import HostCopy, gaps
from bigdiff.engine.partition import Partition, Piece, dense

CPU = torch.device("cpu")
PIECES = (Piece(local=1, start=0, length=2), Piece(local=4, start=2, length=1))
PARTITION = Partition(layout=dense([("a", (3,))]), pieces=PIECES, masters=(torch.zeros(3), torch.zeros(4)))


def test_gaps_are_what_no_piece_covers() -> None:
    assert gaps(PIECES, 7) == [(0, 1), (3, 4), (5, 7)]
    assert gaps(PIECES[::-1], 5) == [(0, 1), (3, 4)]
    assert gaps((), 2) == [(0, 2)]
    assert gaps((Piece(local=0, start=0, length=2),), 2) == []


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_copy_is_of_the_moment_end_to_end_with_zero_padding(kind: torch.dtype) -> None:
    host = HostCopy(PARTITION, CPU, ["master", "exp_avg"])
    master = (torch.tensor([9.0, 1, 2], dtype=kind), torch.tensor([[9.0, 3], [9, 9]], dtype=kind))
    moment = tuple(10 * part for part in master)
    host.take({"master": master, "exp_avg": moment})
    for part in (*master, *moment):
        part.zero_()
    copies, seconds = host.ready()
    assert copies["master"].tolist() == [0, 1, 2, 0, 3, 0, 0]
    assert copies["exp_avg"].tolist() == [0, 10, 20, 0, 30, 0, 0]
    assert copies["master"].dtype == torch.float32
    assert seconds == 0


def test_the_same_memory_is_used_again() -> None:
    host = HostCopy(PARTITION, CPU, ["master"])
    before = {name: one.data_ptr() for name, one in host.ready()[0].items()}
    host.take({"master": PARTITION.masters})
    assert {name: one.data_ptr() for name, one in host.ready()[0].items()} == before
    with pytest.raises(AssertionError, match="were not announced"):
        host.take({"other": PARTITION.masters})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: copies run on a stream of their own")
def test_on_a_device_what_comes_later_waits_for_the_copy() -> None:
    device = torch.device("cuda", 0)
    size = 1 << 26
    masters = (torch.zeros(size, device=device),)
    partition = Partition(
        layout=dense([("a", (size,))]), pieces=(Piece(local=0, start=0, length=size),), masters=masters
    )
    host = HostCopy(partition, device, ["master"])
    for step in range(1, 6):
        masters[0].fill_(step)
        host.take({"master": masters})
        masters[0].fill_(-1)
        copies, seconds = host.ready()
        assert copies["master"].is_pinned() and seconds > 0
        assert bool((copies["master"] == step).all())
