"""What is moved from one stage and world to others, and what each of them owns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bigdiff.config.errors import RunError
from bigdiff.engine.partition import Partition, Piece, dense
from bigdiff.engine.zero import moments_of, put_masters, put_moments, split_all


def test_a_run_goes_on_in_another_stage_on_other_ranks(
    course: Callable[[int], list[dict[str, Any]]], cases: Callable[..., list[str]]
) -> None:
    saved = {case.split("file=")[1]: course(2)[0]["cases"][case] for case in cases(2, "save")}
    for rank in course(3):
        for case in cases(3, "load"):
            one, whole = rank["cases"][case], saved[case.split("file=")[1]]
            assert one["losses"] == pytest.approx(whole["losses"][3:], abs=1e-5, rel=0), case
            for name in ("weights", "exp_avg", "exp_avg_sq"):
                assert one[name] == pytest.approx(whole[name], abs=1e-5, rel=0), (case, name)


def partition() -> Partition:
    pieces = (Piece(local=0, start=0, length=2), Piece(local=2, start=2, length=1))
    return Partition(layout=dense([("a", (3,))]), pieces=pieces, masters=(torch.zeros(2), torch.zeros(1)))


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(RunError, match=r"\(4,\) does not fit the partition \(3,\)"):
        put_masters(partition(), torch.zeros(4))
    mine = partition()
    put_masters(mine, torch.tensor([1.0, 2.0, 3.0]))
    assert [master.tolist() for master in mine.masters] == [[1, 2], [3]]


def test_moments_are_zeros_before_the_first_update_and_copies_after_a_restore() -> None:
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))]
    optimizer = torch.optim.AdamW(weights)
    fresh = moments_of(optimizer.state, weights)
    assert [moment.tolist() for moment in fresh["exp_avg"]] == [[0, 0], [0]]
    assert not any(moment.requires_grad for moment in fresh["exp_avg_sq"])
    local = {"exp_avg": torch.tensor([1.0, 2.0, 3.0]), "exp_avg_sq": torch.tensor([4.0, 5.0, 6.0])}
    put_moments(optimizer.state, weights, split_all(partition(), local), 5)
    local["exp_avg"].zero_()
    assert [moment.tolist() for moment in moments_of(optimizer.state, weights)["exp_avg"]] == [[1, 2], [3]]
    assert [float(optimizer.state[weight]["step"]) for weight in weights] == [5, 5]
    assert moments_of(optimizer.state, weights)["exp_avg_sq"][1] is optimizer.state[weights[1]]["exp_avg_sq"]  # live
    put_moments(optimizer.state, weights, None, 5)
    assert not optimizer.state
