import math

import pytest
import torch
from diffusers import AutoencoderKL

from bigdiff.quickstart import linear_encoder, train_vae


@pytest.fixture(scope="module")
def pictures() -> dict[int, torch.Tensor]:
    return {size: train_vae.normalised(train_vae.pictures(300, 0, size)) for size in train_vae.SIZES}


def written(pictures: dict[int, torch.Tensor], whitening: float) -> AutoencoderKL:
    vae = train_vae.build().eval()
    linear_encoder.write(vae, list(pictures.values()), whitening)
    return vae


def means(vae: AutoencoderKL, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        posterior = vae.encode(batch).latent_dist
    assert torch.allclose(posterior.logvar, torch.full_like(posterior.logvar, linear_encoder.LOG_VARIANCE), atol=1e-3)
    return posterior.mean.permute(0, 2, 3, 1).flatten(0, 2).double()


def test_merging_keeps_every_pixel() -> None:
    picture = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    merged = linear_encoder.merge(picture)
    assert merged.shape == (2, 12, 2, 3)
    for channel in range(12):
        colour, down, right = channel // 4, channel % 4 // 2, channel % 2
        assert torch.equal(merged[:, channel], picture[:, colour, down::2, right::2])


def test_the_network_computes_principal_components_of_patches(pictures: dict[int, torch.Tensor]) -> None:
    vae = written(pictures, whitening=0.5)
    latents = torch.cat([means(vae, batch) for batch in pictures.values()])
    patches = [
        batch.reshape(len(batch), 3, size // 8, 8, size // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 192)
        for size, batch in pictures.items()
    ]
    flat = torch.cat(patches).double()
    # the linear map from the latents back to the patches that is best in the least-squares sense
    inputs = torch.cat((latents, torch.ones(len(latents), 1)), dim=1)
    fitted = inputs @ torch.linalg.lstsq(inputs, flat).solution
    ours = float((fitted - flat).square().mean())
    centred = flat - flat.mean(dim=0)
    spectrum = torch.linalg.svdvals(centred).square() / flat.numel()
    best = float(spectrum[16:].sum())  # Eckart & Young 1936: no linear code of sixteen numbers does better
    assert best <= ours < 1.1 * best


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_deviations_follow_the_whitening_and_the_scale(pictures: dict[int, torch.Tensor], whitening: float) -> None:
    vae = written(pictures, whitening)
    natural = torch.cat([means(written(pictures, 0.0), batch) for batch in pictures.values()]).std(dim=0)
    latents = torch.cat([means(vae, batch) for batch in pictures.values()])
    torch.testing.assert_close(latents.std(dim=0), natural ** (1 - whitening), rtol=0.05, atol=0)
    scaled = latents * vae.config["scaling_factor"]
    assert math.sqrt(float(scaled.var(dim=0).mean())) == pytest.approx(linear_encoder.SCALED_DEVIATION, rel=0.05)
    assert float(latents.mean(dim=0).abs().max()) < 0.2 * float(latents.std(dim=0).max())
