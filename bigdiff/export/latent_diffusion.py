"""The original code's LatentDiffusion for a run: its configuration file, its buffers, and what it cannot be told.

ldm/models/diffusion/ddpm.py registers the noise schedule as buffers, and a checkpoint's values replace those that it
computes from the configuration. So its samplers follow the run's own schedule, also one that the file has no words for.
"""

from typing import Any, Final

import torch
import yaml
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextConfig

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Diffusion, Stage
from bigdiff.diffusion.schedule import alphas_cumprod, betas
from bigdiff.models.original_settings import unet_parameters, vae_parameters

_BETAS: Final = {"scaled_linear": "linear", "linear": "sqrt_linear"}  # our name to theirs: they name the roots' course
_TARGETS: Final = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_HEADS, _TOKENS = 8, 77  # of SD 1.x
# CLIP ViT-L/14's text model, the only one that FrozenCLIPEmbedder and the interfaces build: what its tensors' shapes
# say, and what they do not
_TEXT_SIZES: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
    "max_position_embeddings": _TOKENS,
}
_TEXT_REST: Final = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


def configuration(stage: Stage, vae: AutoencoderKL) -> str:
    """The YAML that lies beside a checkpoint, as v1-inference.yaml does, with the numbers of `stage`.

    Raises:
        UsageError: when the original code has no such networks.
    """
    noise, text = stage.diffusion, stage.model.text
    assert text is not None, "asked for of a stage with text"
    target = _TARGETS[noise.prediction_type]
    embedder: dict[str, Any] = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
    if text.max_length != _TOKENS:
        embedder["params"] = {"max_length": text.max_length}
    parameters = {
        **({} if target == "eps" else {"parameterization": target}),
        "linear_start": noise.beta_start,
        "linear_end": noise.beta_end,
        "beta_schedule": _BETAS[noise.beta_schedule],
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": noise.train_timesteps,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": stage.latent_size,
        "channels": stage.model.unet.latent_channels,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": float(vae.config["scaling_factor"]),
        "use_ema": False,  # the file has one kind of weights
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": unet_parameters(stage.model.unet),
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": vae_parameters(vae.config, stage.resolution),
        },
        "cond_stage_config": embedder,
    }
    content = {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": parameters}}
    return str(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120))


def buffers(diffusion: Diffusion) -> dict[str, Tensor]:
    """What DDPM.register_schedule keeps, fp32 [train_timesteps] each: eq. 4 and 7 of Ho et al. 2020, and their parts.

    With zero terminal SNR the last value of `sqrt_recip...` and `sqrt_recipm1...` is infinite, as it is there.
    """
    beta, bar = betas(diffusion), alphas_cumprod(diffusion)
    before = torch.cat((bar.new_ones(1), bar[:-1]))
    variance = beta * (1.0 - before) / (1.0 - bar)
    found = {
        "betas": beta,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1.0 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1.0 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1.0 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1.0 / bar - 1.0).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),  # the first is 0
        "posterior_mean_coef1": beta * before.sqrt() / (1.0 - bar),
        "posterior_mean_coef2": (1.0 - before) * (1.0 - beta).sqrt() / (1.0 - bar),
    }
    return {name: values.float() for name, values in found.items()}


def untold(stage: Stage, text_encoder: CLIPTextConfig) -> list[str]:
    """What readers of the file must know that the file does not tell them, a clause each.

    Raises:
        UsageError: when the text encoder would be taken for CLIP ViT-L/14's and computes something else.
    """
    found = []
    if any(getattr(text_encoder, key) != value for key, value in _TEXT_SIZES.items()):
        found.append(
            "its text encoder is not CLIP ViT-L/14's, which the original code and the interfaces build: only diffusers "
            "reads it, with config="
        )
    else:
        _refuse_disguised(text_encoder)
    heads, text = stage.model.unet.attention_head_dim, stage.model.text
    if heads != _HEADS:
        found.append(f"its UNet has {heads} heads, which its tensors do not show: ComfyUI takes {_HEADS}")
    if text is not None and text.max_length != _TOKENS:
        found.append(f"its captions have {text.max_length} tokens, the interfaces' {_TOKENS}")
    if stage.diffusion.prediction_type == "v_prediction":
        found.append("CompVis's code does not know v_prediction, Stability-AI's does, ComfyUI must be told by a node")
    if stage.diffusion.prediction_type == "sample":
        found.append("interfaces do not know that it predicts the sample")
    if stage.diffusion.zero_terminal_snr:
        found.append("zero terminal SNR is in its buffers alone: a sampler must start at the last timestep")
    return found


def _refuse_disguised(text_encoder: CLIPTextConfig) -> None:
    for key, value in _TEXT_REST.items():
        found = getattr(text_encoder, key)
        if found != value:
            raise UsageError(
                f"the text encoder has {key}={found}, would be taken for CLIP ViT-L/14's, which has {value}, and give "
                f"other states: keep to diffusers' layout"
            )
