import numpy as np
import pytest
from PIL import Image

from bigdiff.evaluate.curve import HEIGHT, WIDTH, curve, ticks


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.61, 0.78], [0.6, 0.65, 0.7, 0.75, 0.8]),
        ([8.2, 31.0], [5, 10, 15, 20, 25, 30, 35]),
        ([-0.03, 0.02], [-0.03, -0.02, -0.01, 0, 0.01, 0.02]),
        ([100, 900], [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_ticks_are_round_and_hold_all_values(values: list[float], expected: list[float]) -> None:
    assert ticks(values) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[3.0, 3.0], [0.0, 0.0], [1e-7, 2e-7], [-5.0, 1e6], [0.3, 0.30001]])
def test_any_values_lie_between_evenly_spaced_ticks(values: list[float]) -> None:
    found = ticks(values)
    assert 2 <= len(found) <= 9
    assert found[0] <= min(values) and max(values) <= found[-1]
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-6)


def dots(picture: Image.Image) -> np.ndarray:
    """Where the line's colour is, (y, x)."""
    return np.argwhere((np.asarray(picture) == (31, 95, 168)).all(axis=-1))


def test_a_lower_fid_lies_lower_and_a_higher_score_to_the_right() -> None:
    picture = curve([(1.5, 0.5, 20.0), (3.0, 0.7, 10.0)], "2 points")
    assert picture.size == (WIDTH, HEIGHT)
    seen = dots(picture)
    leftmost, rightmost = seen[seen[:, 1].argmin()], seen[seen[:, 1].argmax()]
    assert leftmost[0] < rightmost[0]  # y grows downwards
    assert np.array_equal(dots(curve([(3.0, 0.7, 10.0), (1.5, 0.5, 20.0)], "2 points")), seen)
