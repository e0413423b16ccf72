import numpy as np
import pytest
import torch
from torch_fidelity import metric_prc

from bigdiff.evaluate.precision_recall import precision_recall, radii


def features(seed: int, count: int, spread: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread + shift


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_it_is_what_a_library_computes(block: int) -> None:
    real, generated = features(0, 120), features(1, 90, 0.7, 0.4)
    expected = metric_prc.calculate_precision_recall_full(generated, real, neighborhood=3)
    found = precision_recall(real, generated, block=block)
    assert (found.precision, found.recall) == pytest.approx(expected, abs=1e-6)  # whose shares are float32
    assert 0 < found.recall < found.precision < 1


def test_the_radius_is_the_distance_to_the_third_other_one() -> None:
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [15.0]], dtype=torch.float64)
    np.testing.assert_allclose(radii(line, 3), [7, 6, 4, 7, 14])
    np.testing.assert_allclose(radii(line, 1), [1, 1, 2, 4, 8])


def test_a_part_of_the_real_set_is_precise_and_recalls_less() -> None:
    """Two far groups, of which one is drawn: all that is drawn is real, half of what is real is drawn."""
    real = torch.cat((features(2, 50), features(3, 50, shift=100.0)))
    found = precision_recall(real, real[:50].flip(0))
    assert (found.precision, found.recall) == (1, 0.5)
    same = precision_recall(real, real)
    assert (same.precision, same.recall) == (1, 1)
    away = precision_recall(real, features(4, 60, shift=1000.0))
    assert (away.precision, away.recall) == (0, 0)


def test_too_few_features_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 9 features have no 3-th neighbours"):
        precision_recall(features(0, 3), features(1, 9))
