import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import CLIPTextConfig

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Diffusion, Stage
from bigdiff.export import latent_diffusion
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser

VIT_L = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408
)
CASES = [Diffusion(), Diffusion(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=500)]


def registered(betas: np.ndarray) -> dict[str, np.ndarray]:
    """DDPM.register_schedule of ldm/models/diffusion/ddpm.py, by its formulas, in float64."""
    alphas = 1.0 - betas
    bar = np.cumprod(alphas)
    before = np.append(1.0, bar[:-1])
    variance = betas * (1.0 - before) / (1.0 - bar)
    return {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - bar),
        "log_one_minus_alphas_cumprod": np.log(1.0 - bar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / bar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / bar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1.0 - bar),
        "posterior_mean_coef2": (1.0 - before) * np.sqrt(alphas) / (1.0 - bar),
    }


@pytest.mark.parametrize("diffusion", CASES, ids=["scaled_linear", "linear"])
def test_the_buffers_are_the_originals(diffusion: Diffusion) -> None:
    start, end, steps = diffusion.beta_start, diffusion.beta_end, diffusion.train_timesteps
    scaled = diffusion.beta_schedule == "scaled_linear"
    betas = np.linspace(start**0.5, end**0.5, steps) ** 2 if scaled else np.linspace(start, end, steps)
    ours = latent_diffusion.buffers(diffusion)
    wanted = registered(betas)
    assert ours.keys() == wanted.keys()
    for name, values in wanted.items():
        assert ours[name].dtype == torch.float32
        torch.testing.assert_close(ours[name], torch.tensor(values).float(), rtol=1e-6, atol=1e-7)


def test_zero_terminal_snr_is_in_the_buffers() -> None:
    ours = latent_diffusion.buffers(Diffusion(prediction_type="v_prediction", zero_terminal_snr=True))
    assert (ours["alphas_cumprod"][-1], ours["betas"][-1]) == (0, 1)
    assert math.isinf(ours["sqrt_recip_alphas_cumprod"][-1])
    assert not any(values.isnan().any() for values in ours.values())


def told(stage: Stage, folder: Path) -> dict[str, object]:
    vae = components.load_vae(str(folder))
    content = yaml.safe_load(latent_diffusion.configuration(stage, vae))
    assert content["model"]["target"] == "ldm.models.diffusion.ddpm.LatentDiffusion"
    return content["model"]["params"]  # type: ignore[no-any-return]


def test_the_file_has_the_runs_numbers(grouped: Callable[..., Denoiser], latents_of_four: Path, tmp_path: Path) -> None:
    grouped(tmp_path, "diffusion.beta_end=0.013")
    stage = load_stage(str(tmp_path / "toy" / "config.yaml"))
    plain = told(stage, latents_of_four)
    assert (plain["linear_start"], plain["linear_end"], plain["beta_schedule"]) == (0.00085, 0.013, "linear")
    assert (plain["timesteps"], plain["image_size"], plain["channels"]) == (1000, 4, 4)
    assert plain["scale_factor"] == 0.3
    assert "parameterization" not in plain
    assert plain["unet_config"]["params"]["num_heads"] == 2  # type: ignore[index]
    assert plain["cond_stage_config"]["params"] == {"max_length": 12}  # type: ignore[index]
    v = load_stage(str(tmp_path / "toy" / "config.yaml"), ["diffusion.prediction_type=v_prediction"])
    assert told(v, latents_of_four)["parameterization"] == "v"
    straight = load_stage(str(tmp_path / "toy" / "config.yaml"), ["diffusion.beta_schedule=linear"])
    assert told(straight, latents_of_four)["beta_schedule"] == "sqrt_linear"


def test_what_the_file_cannot_tell_is_said() -> None:
    stage = load_stage("512px")
    assert latent_diffusion.untold(stage, VIT_L) == []
    odd = load_stage(
        "512px",
        ["diffusion.prediction_type=v_prediction", "diffusion.zero_terminal_snr=true", "model.text.max_length=60"],
    )
    said = "; ".join(latent_diffusion.untold(odd, CLIPTextConfig(hidden_size=16)))
    for part in ("not CLIP ViT-L/14's", "60 tokens", "v_prediction", "zero terminal SNR"):
        assert part in said
    heads = load_stage("512px", ["model.unet.attention_head_dim=10"])
    assert "10 heads" in "; ".join(latent_diffusion.untold(heads, VIT_L))


def test_a_text_encoder_that_would_be_taken_for_another_is_refused() -> None:
    other = CLIPTextConfig(**{**VIT_L.to_dict(), "hidden_act": "gelu"})
    with pytest.raises(UsageError, match="hidden_act=gelu, would be taken for CLIP ViT-L/14's, which has quick_gelu"):
        latent_diffusion.untold(load_stage("512px"), other)
