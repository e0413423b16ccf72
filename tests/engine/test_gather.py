"""From shares of uneven length, as ZeRO-0 has them, to the whole."""

from collections.abc import Callable

RANKS = """
import torch
from bigdiff.engine.gather import gathered
from bigdiff.engine.partition import Partition, Piece, dense
from bigdiff.runtime.world import enter, leave
w = enter(60)
layout = dense([("a", (2, 3)), ("b", (1,))])
# rank 0: padding, then the end and the beginning; rank 1: what lies between
pieces = [(Piece(local=1, start=5, length=2), Piece(local=3, start=0, length=2)), (Piece(local=0, start=2, length=3),)]
local = [torch.tensor([-1.0, 5.0, 6.0, 0.0, 1.0]), torch.tensor([2.0, 3.0, 4.0])][w.rank]
parts = (local[:2], local[2:])
partition = Partition(layout=layout, pieces=pieces[w.rank], masters=parts)
print(gathered(partition, parts).tolist(), gathered(partition, [part * 2 for part in parts]).tolist())
leave()
"""


def test_all_ranks_get_the_canonical_vector(run_ranks: Callable[..., list[str]]) -> None:
    whole = [float(number) for number in range(7)]
    assert run_ranks(RANKS, 2) == [f"{whole} {[2 * number for number in whole]}\n"] * 2
