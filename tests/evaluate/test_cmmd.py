import math

import numpy as np
import pytest
import torch
from torch_fidelity import metric_kid

from bigdiff.evaluate.cmmd import cmmd


def embeddings(seed: int, count: int, shift: float = 0.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=random) + shift, dim=1)


def test_it_is_the_formula_pair_by_pair() -> None:
    """In plain Python, of the paper's equation 4 with pairs of an embedding with itself, as its code has them."""
    one, other = embeddings(0, 7), embeddings(1, 5, 0.5)

    def mean(first: torch.Tensor, second: torch.Tensor) -> float:
        pairs = [(x.double(), y.double()) for x in first for y in second]
        return sum(math.exp(-float((x - y).square().sum()) / 200) for x, y in pairs) / len(pairs)

    expected = 1000 * (mean(one, one) + mean(other, other) - 2 * mean(one, other))
    for block in (1, 3, 100):
        assert cmmd(one, other, block) == pytest.approx(expected, rel=1e-9)
    assert cmmd(other, one) == pytest.approx(expected, rel=1e-9)


def test_it_is_the_biased_estimate_of_a_library() -> None:
    one, other = embeddings(2, 40), embeddings(3, 40, 0.3)
    x, y = one.double().numpy(), other.double().numpy()
    kernels = [metric_kid.kernel_rbf(a, b, kid_kernel_rbf_sigma=10.0) for a, b in ((x, x), (x, y), (y, y))]
    assert cmmd(one, other) == pytest.approx(1000 * metric_kid.mmd2(*kernels, mmd_est="biased"), rel=1e-9)


def test_points_have_a_closed_form() -> None:
    """All of each set in one place: 2,000 (1 - exp(-d^2 / 200))."""
    one, other = torch.tensor([[1.0, 0.0]]).repeat(3, 1), torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    assert cmmd(one, other) == pytest.approx(2000 * (1 - math.exp(-2 / 200)), rel=1e-12)
    assert cmmd(one, one) == 0


def test_it_grows_with_the_distance() -> None:
    far = [cmmd(embeddings(0, 200), embeddings(1, 200, shift)) for shift in (0.0, 0.2, 0.5, 2.0)]
    assert far == sorted(far)
    assert np.all(np.array(far) >= 0)


def test_sets_that_do_not_compare_are_refused() -> None:
    for one, other in ((torch.zeros(0, 4), torch.zeros(3, 4)), (torch.zeros(3, 4), torch.zeros(3, 5))):
        with pytest.raises(ValueError, match="embeddings of shapes"):
            cmmd(one, other)
