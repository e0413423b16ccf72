"""What each of three ranks owns: at all stages, and of stages 1 and 2."""

from collections.abc import Callable
from typing import Any

import torch

Told = Callable[[int], list[dict[str, Any]]]
Cases = Callable[..., list[str]]


def test_pieces_say_where_the_masters_values_come_from(course: Told, cases: Cases) -> None:
    told = course(3)
    initial = torch.tensor(told[0]["initial"])
    for case in cases(3, "own"):
        found, times = torch.zeros(77), torch.zeros(77)
        for rank in told:
            one = rank["cases"][case]
            local, covered = torch.tensor(one["local"]), torch.zeros(len(one["local"]))
            for at, start, length in one["pieces"]:
                found[start : start + length] = local[at : at + length]
                times[start : start + length] += 1
                covered[at : at + length] += 1
            assert covered.le(1).all()
            assert local[covered == 0].eq(0).all()  # the padding
            assert one["shapes"] == [[7, 5], [7], [7], [7], [3, 7]]
            assert one["fresh"] == [0] * 77
        assert times.eq(1).all()
        assert torch.equal(found, initial.bfloat16().float() if "bf16" in case else initial), case


def test_a_restore_reaches_all_ranks_networks(course: Told, cases: Cases) -> None:
    whole = torch.arange(77) / 64 + 1 / 512
    for rank in course(3):
        for case in cases(3, "own"):
            one = rank["cases"][case]
            network = torch.tensor(one["network"])
            assert torch.equal(network, whole.bfloat16().float() if "bf16" in case else whole), case
            assert torch.equal(torch.tensor(one["exp_avg"]), whole + 1)
            assert torch.equal(torch.tensor(one["exp_avg_sq"]), whole + 2)
            assert set(one["counts"]) == {9}


def test_stages_one_and_two_step_one_tensor_as_long_on_all_ranks(course: Told, cases: Cases) -> None:
    for case in [one for one in cases(3, "own") if "stage=1" in one or "stage=2" in one]:
        owned = [rank["cases"][case] for rank in course(3)]
        assert [one["masters"] for one in owned] == [1] * 3
        assert len({len(one["local"]) for one in owned}) == 1
