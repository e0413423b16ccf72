import numpy as np

from bigdiff.config.scoring import HEADS
from bigdiff.prep.scorers import golden


def test_the_embeddings_are_unit_directions_that_point_apart() -> None:
    found = golden.embeddings()
    assert found.shape == (6, golden.WIDTH) and found.dtype == np.float32
    np.testing.assert_allclose(found @ found.T, np.eye(6), atol=0.2)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_embeddings_never_change() -> None:
    """The golden values are of these; every number is a small fraction before it is normalised."""
    seed, place = 95, 768
    mixed = (seed * 2654435761 + place * 40503 + seed * place * 69069 + place**2 % (seed + 96) * 7919) % 65537
    row = [
        (seed * 2654435761 + each * 40503 + seed * each * 69069 + each**2 % (seed + 96) * 7919) % 65537 / 65537 - 0.5
        for each in range(1, 769)
    ]
    assert row[-1] == mixed / 65537 - 0.5
    np.testing.assert_allclose(golden.embeddings()[1], np.array(row) / np.linalg.norm(row), atol=1e-7)


def test_each_head_has_golden_values_that_differ_enough_to_tell() -> None:
    assert golden.SCORES.keys() == set(HEADS)
    for known in golden.SCORES.values():
        for sha256, scores in known.items():
            assert len(sha256) == 64 and len(scores) == len(golden.embeddings())
            assert np.std(scores) > 0.1


def test_the_pictures_are_what_they_say() -> None:
    assert golden.pattern(64, 40).size == (64, 40)
    stripes = golden.pattern(128, 40)
    first, second = stripes.getpixel((15, 39)), stripes.getpixel((16, 39))
    assert (first, second) == ((100, 100, 200), (138, 100, 100))
    assert stripes.convert("L").getpixel((15, 39)) == stripes.convert("L").getpixel((16, 39))
