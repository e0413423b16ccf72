import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from bigdiff.config.errors import RunError, UsageError
from bigdiff.models import components
from bigdiff.models.halving import halved
from bigdiff.prep import encoder as encoders
from bigdiff.prep.encoder import Encoder
from bigdiff.prep.latent_settings import Settings

KEYS = ["a", "b", "c"]


@pytest.fixture
def shown() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))


def narrowed(encoder: Encoder, log_variance: float) -> Encoder:
    """With a posterior of this log-variance everywhere, storing the mean alone."""
    with torch.no_grad():
        encoder.vae.quant_conv.weight[2:] = 0
        encoder.vae.quant_conv.bias[2:] = log_variance
    return replace(encoder, mean_only=True)


def test_the_canarys_figure_is_the_psnr_of_the_posterior_mean(encoder: Encoder, shown: torch.Tensor) -> None:
    moments = encoders.encode(encoder, shown, KEYS).moments
    wanted = shown.permute(0, 3, 1, 2) / 127.5 - 1
    drawn = encoder.vae.decode(torch.from_numpy(moments[:, :2]).float()).sample.clamp(-1, 1)
    expected = 10 * torch.log10(4 / (drawn - wanted).square().mean())
    for stored in (moments, moments[:, :2]):  # or the mean alone
        assert encoders.canary(encoder, shown, stored, Path("x")) == pytest.approx(float(expected), abs=1e-3)


def test_moments_beyond_float16_are_refused(encoder: Encoder) -> None:
    with torch.no_grad():
        encoder.vae.quant_conv.bias.fill_(1e6)
    with pytest.raises(RunError, match="sample a moments beyond float16"):
        encoders.encode(encoder, torch.zeros((2, 16, 16, 3), dtype=torch.uint8), ["a", "b"])


def test_mirrored_moments_are_those_of_the_flipped_picture(encoder: Encoder, shown: torch.Tensor) -> None:
    flipped = torch.from_numpy(np.stack([cv2.flip(one, 1) for one in shown.numpy()]))
    given = encoders.encode(replace(encoder, mirrored=True), shown, KEYS)
    assert given.mirrored is not None
    assert np.array_equal(given.mirrored, encoders.encode(encoder, flipped, KEYS).moments)
    assert np.array_equal(given.moments, encoders.encode(encoder, shown, KEYS).moments)
    turned = given.moments[..., ::-1].astype(float)  # of the latents themselves: not the same
    assert np.abs(turned - given.mirrored.astype(float)).max() > 0.05


def test_other_boxes_are_encoded_as_they_would_be_alone(encoder: Encoder, shown: torch.Tensor) -> None:
    others = [shown.flip(1), shown // 2]
    for mirrored in (False, True):
        chosen = replace(encoder, mirrored=mirrored, crops=3)
        alone = [encoders.encode(chosen, one, KEYS) for one in (shown, *others)]
        given = encoders.encode(chosen, shown, KEYS, others)
        assert np.array_equal(given.moments, alone[0].moments) and given.spread == 0
        assert len(given.crops) == 1 + mirrored and given.crops[0].shape == (3, 2, 4, 8, 8)
        for box in range(2):
            assert np.array_equal(given.crops[0][:, box], alone[1 + box].moments)
            assert not mirrored or np.array_equal(given.crops[1][:, box], alone[1 + box].mirrored)
    assert chosen.layout.boxes == 3 and len(chosen.frames) == 3 and chosen.frames[1] == chosen.frame
    with pytest.raises(RunError, match="sample b moments beyond float16"), torch.no_grad():
        encoder.vae.quant_conv.bias.fill_(4e4)
        encoder.vae.quant_conv.weight.zero_()
        encoder.vae.quant_conv.bias[0] = 7e4
        encoders.encode(chosen, shown[1:2], KEYS[1:2], [one[1:2] for one in others])


def test_the_mean_alone_is_stored_of_a_narrow_posterior(encoder: Encoder, shown: torch.Tensor) -> None:
    moments = encoders.encode(narrow := replace(narrowed(encoder, -20.0), mean_only=False), shown, KEYS).moments
    given = encoders.encode(replace(narrow, mean_only=True), shown, KEYS)
    assert np.array_equal(given.moments, moments[:, :2])
    assert given.spread == pytest.approx(math.exp(-10) / moments[:, :2].astype(float).std(), rel=1e-2)
    assert replace(narrow, mean_only=True).layout.shape == (2, 8, 8)


def test_the_mean_alone_is_refused_with_the_measured_figure(encoder: Encoder, shown: torch.Tensor) -> None:
    wide = narrowed(encoder, -2.0)
    mean = encoders.encode(replace(wide, mean_only=False), shown, KEYS).moments[:, :2].astype(float)
    with pytest.raises(UsageError, match=f"is {math.exp(-1) / mean.std():.2g} of the latents'.* more than 0.01"):
        encoders.encode(wide, shown, KEYS)


def test_half_precision_is_held_against_the_whole(encoder: Encoder, shown: torch.Tensor) -> None:
    half = replace(encoder, half=halved(encoder.vae, "fp16"), mirrored=True)
    found = encoders.rounding(half, shown, KEYS)
    assert 1e-6 < found < encoders.NARROW and encoders.rounding(encoder, shown, KEYS) == 0
    given, right = (encoders.encode(one, shown, KEYS, [shown.flip(1)]) for one in (half, replace(half, half=None)))
    for one, other in (
        (given.moments, right.moments),
        (given.mirrored, right.mirrored),
        (given.crops[0], right.crops[0]),
    ):
        assert one is not None and other is not None and not np.array_equal(one, other)
        error = one.astype(float) - other
        assert np.sqrt((error**2).mean()) < 0.02 * other.astype(float).std()
    with torch.no_grad():
        half.half.encoder.conv_in.weight.mul_(1.1)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"--precision fp16 would change the latents: .* from a on, more than"):
        encoders.rounding(half, shown, KEYS)


def test_weights_that_half_precision_cannot_hold_are_refused(
    encoder: Encoder, shown: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "NARROW", 0.02)  # bf16 moves this small autoencoder's latents by 0.011
    with torch.no_grad():  # 1e5 is beyond fp16; the layers together are as they were
        encoder.vae.quant_conv.weight.mul_(1e-5)
        encoder.vae.encoder.conv_out.weight.mul_(1e5)
        encoder.vae.encoder.conv_out.bias.mul_(1e5)
    assert encoders.rounding(replace(encoder, half=halved(encoder.vae, "bf16")), shown, KEYS) < 0.02
    with pytest.raises(UsageError, match="--precision fp16 would change the latents"):
        encoders.rounding(replace(encoder, half=halved(encoder.vae, "fp16")), shown, KEYS)


def test_norms_that_no_kernel_computes_are_refused(toy: Path) -> None:
    names = {name: str(toy / name) for name in ("vae", "tokenizer")}
    settings = Settings(**names, resolution=8, text_length=12, precision="fp16")
    assert encoders.load(settings).half is not None
    with pytest.raises(
        UsageError, match=r"--fused-norms cannot be had: on cpu it does not run \(.*; encode without it"
    ):
        encoders.load(replace(settings, fused_norms=True))
    with pytest.raises(UsageError, match="--fused-norms has no effect on --precision fp32"):
        replace(settings, precision="fp32", fused_norms=True)


def test_a_pass_on_a_gpu_is_an_even_part_of_the_batch_that_fits(encoder: Encoder, shown: torch.Tensor) -> None:
    cuda = replace(encoder, device=torch.device("cuda"), batch=64)
    assert encoder.at_once == 4 and cuda.at_once == 64
    width = encoder.vae.config["block_out_channels"][0]
    side = math.isqrt(encoders.WIDEST // 30 // width)  # of which 30 and no 31 fit
    assert replace(cuda, resolution=side).at_once == 22 and replace(cuda, resolution=side, batch=60).at_once == 30
    parts = encoders.encode(replace(encoder, batch=1), shown, KEYS)
    np.testing.assert_allclose(parts.moments, encoders.encode(encoder, shown, KEYS).moments, atol=2e-3)


def test_captions_longer_than_the_text_encoder_takes_are_refused(toy: Path) -> None:
    names = {name: str(toy / name) for name in ("vae", "tokenizer", "text_encoder")}
    with pytest.raises(UsageError, match="takes 12 tokens, text_length=77"):
        encoders.load(Settings(**names, resolution=8))


def test_a_contract_has_no_line_of_what_is_off(encoder: Encoder, toy: Path) -> None:
    plain = encoders.stored_as(encoder).lines()
    assert not {"text_states", "text_encoder_sha256", "buckets", "crops"} & set(plain)
    assert (plain["stored"], plain["mirror"], plain["shape"]) == ("moments", False, [4, 8, 8])
    text = components.load_text_encoder(str(toy / "text_encoder"))
    every = encoders.stored_as(replace(encoder, text_encoder=text, mirrored=True, mean_only=True, crops=3)).lines()
    assert {key: every[key] for key in every if every[key] != plain.get(key)} == {
        "stored": "mean",
        "mirror": "stored",
        "crops": 3,
        "shape": [2, 8, 8],
        "text_states": 16,
        "text_encoder_sha256": components.weights_sha256(text),
    }
