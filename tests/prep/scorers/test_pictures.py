import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from bigdiff.config.errors import UsageError
from bigdiff.prep.scorers import golden, pictures
from bigdiff.prep.scorers.pictures import Flatness, Sharpness, grey
from bigdiff.prep.scorers.scorer import Batch

PATTERN = golden.pattern(512, 512)


def batch(*found: Image.Image) -> Batch:
    return Batch(found, [""] * len(found))


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    values = grey(PATTERN).astype(np.int64)
    padded = np.pad(values, 1, mode="reflect")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * values
    assert Sharpness().score(batch(PATTERN)) == pytest.approx([laplacian.var()])


def test_flatness_is_the_share_of_even_neighbourhoods() -> None:
    values = np.pad(grey(PATTERN).astype(np.int64), 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3))
    spread = windows.max(axis=(2, 3)) - windows.min(axis=(2, 3))
    assert Flatness().score(batch(PATTERN)) == pytest.approx([(spread <= 1).mean()])


def test_extremes() -> None:
    even = Image.new("RGB", (300, 200), (10, 200, 30))
    assert Sharpness().score(batch(even)) == [0.0] and Flatness().score(batch(even)) == [1.0]
    assert Sharpness().score(batch(noise(256)))[0] > 2000 and Flatness().score(batch(noise(256)))[0] < 0.01


def test_blur_lowers_sharpness_step_by_step() -> None:
    scores = Sharpness().score(batch(*[PATTERN.filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2, 4)]))
    assert scores == sorted(scores, reverse=True) and scores[-1] < scores[0] / 10


def test_the_resolution_does_not_matter() -> None:
    """A picture and the same one of twice or four times as many pixels a side."""
    small = PATTERN.resize((256, 256), Image.Resampling.BOX)
    same = [small.resize((factor * 256, factor * 256), Image.Resampling.NEAREST) for factor in (1, 2, 4)]
    for scorer in (Sharpness(), Flatness()):
        first, *others = scorer.score(batch(*same))
        assert others == pytest.approx([first] * 2, rel=0.01)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (256, 257), (255, 256)])
def test_every_size_has_scores(size: tuple[int, int]) -> None:
    picture = PATTERN.resize(size)
    assert min(grey(picture).shape) == pictures.SIDE
    for scorer in (Sharpness(), Flatness()):
        assert np.isfinite(scorer.score(batch(picture))).all()


@pytest.mark.parametrize("scorer", [Sharpness(), Flatness()], ids=lambda each: each.name)
def test_a_broken_measure_is_refused(scorer: Sharpness | Flatness, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer.self_test()
    right = pictures.grey
    breaks = {
        "blue for red": lambda picture: right(Image.fromarray(np.asarray(picture)[:, :, ::-1].copy())),
        "no scale": lambda picture: cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2GRAY),
        "mean of the channels": lambda picture: right(
            Image.fromarray(np.asarray(picture).mean(axis=2).astype(np.uint8)).convert("RGB")
        ),
    }
    for name, wrong in breaks.items():
        monkeypatch.setattr(pictures, "grey", wrong)
        with pytest.raises(UsageError, match=f"scorer {scorer.name} does not give its golden values"):
            scorer.self_test()
            pytest.fail(name)
