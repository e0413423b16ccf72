"""Who shards with whom, and who has the same."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.engine.groups import Groups

SCRIPT = """
import json, sys, torch
import torch.distributed as dist
from datetime import timedelta
from bigdiff.engine.groups import formed
from bigdiff.runtime.world import enter, leave

world = enter(60)
groups = formed(world.rank, world.size, int(sys.argv[1]), timedelta(seconds=60))
mine = torch.tensor(float(2 ** world.rank))
members = []
for group in (groups.inside, groups.between):
    total = mine.clone()
    dist.all_reduce(total, group=group)
    members.append(int(total))  # a bit for each rank
length = 7
part = groups.part(length)
whole = groups.whole(torch.arange(length, dtype=torch.float32)[part] + 100 * groups.member, length)
print(json.dumps({"inside": members[0], "between": members[1], "total": groups.total(mine.clone()).item(),
                  "place": [groups.number, groups.member], "whole": whole.tolist()}))
leave()
"""


@pytest.mark.parametrize(("ranks", "size"), [(4, 2), (3, 1), (6, 3), (2, 2)])
def test_neighbours_shard_and_groups_have_the_same(run_ranks: Callable[..., list[str]], ranks: int, size: int) -> None:
    for rank, output in enumerate(run_ranks(SCRIPT, ranks, str(size))):
        told = json.loads(output.splitlines()[-1])
        first = rank // size * size
        inside = sum(2**one for one in range(first, first + size))
        assert told["place"] == [rank // size, rank % size]
        assert told["total"] == inside
        if size < ranks:
            assert told["inside"] == inside
            assert told["between"] == sum(2**one for one in range(rank % size, ranks, size))
        assert told["whole"] == [one + 100 * (rank % size) for one in range(7)]


@given(st.integers(0, 500), st.integers(1, 20))
def test_the_groups_parts_are_the_whole_once(length: int, count: int) -> None:
    every = [range(length)[Groups(size=1, count=count, member=0, number=one).part(length)] for one in range(count)]
    assert [one for part in every for one in part] == list(range(length))
