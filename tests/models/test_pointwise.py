"""Functions of torch stand for kernels."""

from types import ModuleType

import torch
from torch import Tensor

from bigdiff.models.pointwise import computed

KERNELS = ModuleType("kernels")
SEEN: list[Tensor] = []


def forward(given: Tensor) -> Tensor:
    SEEN.append(given)
    return given.exp()


def backward(gradient: Tensor, given: Tensor) -> Tensor:
    SEEN.extend([gradient, given])
    return gradient * given.exp()


KERNELS.__dict__.update(forward=forward, backward=backward)


def test_the_gradient_is_the_kernels_and_they_see_contiguous_tensors() -> None:
    SEEN.clear()
    given = torch.randn(3, 5, dtype=torch.float64).T.requires_grad_()
    behind = torch.randn(3, 5, dtype=torch.float64).T
    out = computed(KERNELS, given)
    (found,) = torch.autograd.grad(out, given, behind)
    (known,) = torch.autograd.grad(given.exp(), given, behind)
    assert torch.equal(out, given.exp()) and torch.allclose(found, known)
    assert len(SEEN) == 3 and all(one.is_contiguous() for one in SEEN)
    assert torch.autograd.gradcheck(lambda one: computed(KERNELS, one), given)
