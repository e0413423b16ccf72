from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bigdiff.config.errors import UsageError
from bigdiff.models import inception
from bigdiff.models.inception import Inception

CPU = torch.device("cpu")


def picture(seed: int, width: int, height: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def board(side: int) -> Image.Image:
    """Black and white, changing with every pixel."""
    return Image.fromarray((np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")


@pytest.fixture(scope="module")
def networks(random_inception: Path) -> Callable[[str], Inception]:
    made = {resize: Inception(str(random_inception), resize, CPU) for resize in ("clean", "legacy")}  # type: ignore[arg-type]
    return lambda resize: made[resize]


def test_legacy_features_are_torch_fidelitys(networks: Callable[[str], Inception], random_inception: Path) -> None:
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(random_inception))
    shown = [picture(seed, 60, 40) for seed in range(2)]
    pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in shown])
    with torch.no_grad():
        expected = theirs(pixels)[0]
    found = networks("legacy").features(shown)
    assert found.shape == (2, 2048) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float(found.std(dim=0).mean()) > 1e-3  # they tell pictures apart


def test_clean_features_are_of_the_same_network(networks: Callable[[str], Inception]) -> None:
    """At 299 pixels both ways leave the picture as it is."""
    one = picture(3, 299, 299)
    torch.testing.assert_close(inception.clean(one), inception.legacy(one), rtol=0, atol=1e-4)
    values = torch.from_numpy(np.array(one)).permute(2, 0, 1).float()
    torch.testing.assert_close(inception.clean(one), values, rtol=0, atol=0)
    clean, legacy = (networks(resize).features([one]) for resize in ("clean", "legacy"))
    torch.testing.assert_close(clean, legacy, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(networks("clean").pixels([one])[0], (values - 128) / 128, rtol=0, atol=0)


def test_clean_averages_what_it_makes_smaller_and_legacy_picks() -> None:
    wide = board(2 * 299)
    assert float((inception.clean(wide) - 127.5).abs()[:, 5:-5, 5:-5].max()) < 1
    picked = inception.legacy(wide)  # every second pixel of a board: all of one colour
    assert float(picked.min()) == float(picked.max()) == 0


def test_clean_neither_rounds_nor_leaves_the_range() -> None:
    found = inception.clean(picture(1, 50, 70))
    assert float((found - found.round()).abs().max()) > 0.4
    sharp = inception.clean(board(40))  # bicubic would swing beyond black and white
    assert float(sharp.min()) == 0 and float(sharp.max()) == 255


def test_a_picture_is_seen_alone(networks: Callable[[str], Inception]) -> None:
    shown = [picture(seed, 40 + 30 * seed, 80) for seed in range(3)]
    together = networks("clean").features(shown)
    torch.testing.assert_close(networks("clean").features(shown[1:2])[0], together[1], rtol=1e-4, atol=1e-5)


def test_the_fingerprint_says_what_features_depend_on(
    networks: Callable[[str], Inception], random_inception: Path, tmp_path: Path
) -> None:
    clean, legacy = networks("clean"), networks("legacy")
    assert "(not the published weights), resize clean" in clean.fingerprint and not clean.published
    assert legacy.fingerprint == clean.fingerprint.replace("clean", "legacy")
    state = torch.load(random_inception, weights_only=True)
    wrapped = tmp_path / "wrapped.pt"
    torch.save({"state_dict": state}, wrapped)
    assert Inception(str(wrapped), "clean", CPU).fingerprint == clean.fingerprint
    state["Conv2d_1a_3x3.conv.weight"] += 1
    torch.save(state, wrapped)
    assert Inception(str(wrapped), "clean", CPU).fingerprint != clean.fingerprint


def test_a_file_without_batch_counts_is_read_as_the_published_one_may_be(
    networks: Callable[[str], Inception], random_inception: Path, tmp_path: Path
) -> None:
    state = torch.load(random_inception, weights_only=True)
    plain = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(plain, tmp_path / "plain.pth")
    one = [picture(0, 50, 50)]
    found = Inception(str(tmp_path / "plain.pth"), "clean", CPU).features(one)
    torch.testing.assert_close(found, networks("clean").features(one), rtol=0, atol=0)


class Trap:
    """What a hostile file does when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_weights_that_cannot_be_used_are_one_sentence(random_inception: Path, tmp_path: Path) -> None:
    where = r"download pt_inception-2015-12-05-6726825d\.pth from the releases of mseitzer/pytorch-fid"
    with pytest.raises(UsageError, match=rf"^--inception: there is no weights file .*absent\.pth; {where}"):
        Inception(str(tmp_path / "absent.pth"), "clean", CPU)
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UsageError, match=rf"other\.pth is of another model .*; {where}"):
        Inception(str(tmp_path / "other.pth"), "clean", CPU)
    state = torch.load(random_inception, weights_only=True)
    state["fc.bias"][3] = float("nan")
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(UsageError, match=r"has fc\.bias with values that are not finite"):
        Inception(str(tmp_path / "broken.pth"), "clean", CPU)
    torch.save({"fc.bias": Trap(tmp_path / "executed")}, tmp_path / "hostile.pth")
    with pytest.raises(UsageError, match=r"hostile\.pth cannot be read without running code"):
        Inception(str(tmp_path / "hostile.pth"), "clean", CPU)
    assert not (tmp_path / "executed").exists()
