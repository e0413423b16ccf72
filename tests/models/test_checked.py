"""What a run finds out about a kernel before it relies on it; functions of torch stand for kernels, right and wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bigdiff.models import checked
from bigdiff.models.checked import Case
from bigdiff.runtime.world import World

ELSE = "on cpu in float32 it computes something else"


def product(one: Tensor, other: Tensor) -> Tensor:
    return one * other.exp()


def case(fused: Callable[..., Tensor]) -> Case:
    return Case(fused=fused, eager=product, shapes=((5, 7), (7,)))


def off(one: Tensor, other: Tensor) -> Tensor:
    return product(one, other) * 1.001


def cut(one: Tensor, other: Tensor) -> Tensor:
    return product(one, other.detach()) + 0 * other.sum()  # the right output, and a gradient that is zero


def empty(one: Tensor, other: Tensor) -> Tensor:
    return product(one, other) * float("nan")


def missing(*_: Tensor) -> Tensor:
    raise RuntimeError("no\n driver")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_what_computes_the_same_is_taken(world: World, kind: torch.dtype) -> None:
    assert checked.problem([case(product), case(lambda one, other: other.exp() * one)], kind, world) == ""


@pytest.mark.parametrize("wrong", [off, cut, empty])
def test_a_wrong_output_and_a_wrong_gradient_are_found(world: World, wrong: Callable[..., Tensor]) -> None:
    assert checked.problem([case(product), case(wrong)], torch.float32, world) == ELSE


def test_what_fails_is_told_in_a_line(world: World) -> None:
    assert checked.problem([case(missing)], torch.float32, world) == "on cpu it does not run (no driver)"


def test_gradients_are_of_every_input() -> None:
    one, other, behind = torch.randn(5, 7), torch.randn(7), torch.randn(5, 7)
    found: Any = checked.gradients(product, [one, other], behind)
    expected = [one * other.exp(), behind * other.exp(), (behind * one * other.exp()).sum(0)]
    assert all(torch.allclose(each, right) for each, right in zip(found, expected, strict=True))


RANKS = """
import importlib.util
import torch
spec = importlib.util.spec_from_file_location("cases", "tests/models/test_checked.py")
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
from bigdiff.runtime.world import enter, leave
world = enter(60)
print(cases.checked.problem([cases.case(cases.off if world.rank else cases.product)], torch.float32, world))
leave()
"""


def test_what_is_wrong_on_one_rank_is_known_on_all(run_ranks: Callable[..., list[str]]) -> None:
    assert [one.strip() for one in run_ranks(RANKS, 2)] == [ELSE, ELSE]
