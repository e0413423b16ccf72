"""What is particular to ZeRO-0."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bigdiff.engine.partition import dense
from bigdiff.engine.replicated import ReplicatedFp32
from bigdiff.runtime.world import enter, leave


def test_ranks_answer_for_even_shares_without_padding(
    course: Callable[[int], list[dict[str, Any]]], cases: Callable[..., list[str]]
) -> None:
    for case in [one for one in cases(3, "own") if "stage=0" in one]:
        owned = [rank["cases"][case] for rank in course(3)]
        assert [len(one["local"]) for one in owned] == [25, 26, 26]
        assert [one["pieces"] for one in owned] == [[[0, 0, 25]], [[0, 25, 26]], [[0, 51, 26]]]


@pytest.mark.parametrize("limit", [0.0, 1.0, 100.0])
def test_the_norm_is_torchs_and_clips_as_torch_does(limit: float) -> None:
    weights = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    theirs = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    for number, (one, other) in enumerate(zip(weights, theirs, strict=True)):
        one.grad = torch.full_like(one, number + 1.5)
        other.grad = one.grad.clone()
    enter(60)
    try:
        layout = dense((str(number), one.shape) for number, one in enumerate(weights))
        norm = ReplicatedFp32(layout, weights, {}, limit).norm()
    finally:
        leave()
    assert float(norm) == float(torch.nn.utils.clip_grad_norm_(theirs, limit or float("inf")))
    for one, other in zip(weights, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
