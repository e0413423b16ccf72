"""The roll on real stores; with real ranks that hang and die in tests/runtime/test_watchdog.py."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist

from bigdiff.runtime.rollcall import NAMED, Answers, Place, RollCall


def place(rank: int, **changes: object) -> Place:
    usual = Place(rank=rank, host=f"node{rank // 8}", step=7, phase="data", moves=20, seconds=31.4)
    return replace(usual, **changes)  # type: ignore[arg-type]


def rolls(size: int) -> list[RollCall]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    return [RollCall(store, rank, size) for rank in range(size)]


def test_the_last_word_of_each_is_read_by_all() -> None:
    first, second, third = rolls(3)
    assert first.told() == {} and first.called() == ""
    second.tell(place(1, moves=4))
    second.tell(place(1, moves=5, seconds=0.5, failed='said "no"\n'))
    expected = {1: place(1, moves=5, seconds=0.5, failed='said "no"\n')}
    assert first.told() == second.told() == third.told() == expected
    third.call("rank 2 has not moved on")
    assert [roll.called() for roll in (first, second, third)] == ["rank 2 has not moved on"] * 3


def test_the_roll_ends_when_all_are_here_and_sooner_for_those_who_do_not_speak() -> None:
    first, second, third = rolls(3)
    second.answer(place(1))
    began = time.monotonic()
    threading.Timer(0.3, lambda: (first.answer(place(0)), third.answer(place(2)))).start()
    answers = second.gather(20)
    assert time.monotonic() - began < 5
    assert answers == Answers(here={}, told={}, size=3, speaks=False)  # rank 0 does
    answers = first.gather(20)
    assert answers.speaks and answers.here == {rank: place(rank) for rank in range(3)}


@pytest.mark.parametrize("lost", ["silent", "failed"])
def test_the_lowest_that_lives_speaks(lost: str) -> None:
    first, second, third = rolls(3)
    if lost == "failed":
        first.answer(place(0, failed="no space"))
    first.tell(place(0, step=6))
    second.answer(place(1))
    third.answer(place(2))
    speaking, silent = second.gather(0.5), third.gather(0.5)
    assert speaking.speaks and not silent.speaks
    assert set(speaking.here) == ({0, 1, 2} if lost == "failed" else {1, 2})
    assert speaking.told == {0: place(0, step=6)}


STORE = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True, wait_for_workers=False)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_store_whose_process_has_ended_is_an_error_at_once(free_port: Callable[[], int]) -> None:
    port = free_port()
    keeper = subprocess.Popen(
        [sys.executable, "-c", STORE, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert keeper.stdout is not None and keeper.stdout.readline() == "ready\n"
        store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))  # type: ignore[attr-defined]
        roll = RollCall(dist.PrefixStore("beacon", store), 1, 2)  # type: ignore[attr-defined]
        roll.tell(place(1))
        assert roll.told() == {1: place(1)}
        assert roll.gather(0.3).here == {}  # nobody answered, this rank neither
    finally:
        keeper.kill()
        keeper.communicate()
    began = time.monotonic()
    with pytest.raises(dist.DistError):
        for _ in range(3):
            roll.tell(place(1))
    assert time.monotonic() - began < 10


def blamed(*here: Place, told: tuple[Place, ...] = (), size: int = 3) -> str:
    found = {one.rank: one for one in here}
    return Answers(here=found, told={one.rank: one for one in told}, size=size, speaks=True).blame


def test_blame_goes_to_who_failed_before_who_is_silent_before_who_is_behind() -> None:
    ahead, behind = place(0, phase="forward and backward", moves=21), place(1, seconds=40.2)
    failed = place(2, phase="checkpoint", failed="no space is left")
    assert blamed(ahead, behind, failed) == "rank 2 (node0) failed at step 7 (checkpoint): no space is left"
    assert blamed(ahead, failed) == blamed(ahead, behind, failed)
    silent = "rank 2 (node0) does not answer (killed, stopped or cut off), last heard of in data of step 5"
    assert blamed(ahead, behind, told=(place(2, step=5),)) == silent
    assert blamed(ahead, behind, place(2, moves=21, phase="agreement")) == (
        "rank 1 (node0) hangs in data of step 7 for 40 s while others wait in forward and backward of step 7"
    )


def test_blame_of_a_rank_that_never_told() -> None:
    found = blamed(place(0), place(1))
    assert found == "rank 2 (host unknown) does not answer (killed, stopped or cut off), last heard of never"


def test_all_may_hang_together() -> None:
    assert blamed(place(0), place(1), place(2)) == "all 3 ranks hang in data of step 7 for 31 s"
    assert Answers.alone(place(0)).blame == "rank 0 (node0) hangs in data of step 7 for 31 s"


def test_ranks_of_whom_the_same_is_said_are_named_together_and_many_are_counted() -> None:
    two = blamed(place(0, failed="x"), place(1, failed="y"), place(2, failed="x"))
    assert two == "rank 0 (node0), rank 2 (node0) failed at step 7 (data): x; rank 1 (node0) failed at step 7 (data): y"
    many = blamed(*(place(rank, moves=1) for rank in range(20)), place(20, moves=9), size=21)
    assert many.count("rank ") == NAMED
    assert many.startswith("rank 0 (node0), rank 1 (node0)")
    assert "rank 7 (node0) hangs in data of step 7; and 12 more ranks for 31 s while others wait" in many
