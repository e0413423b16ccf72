"""Networks in the words of the original code, which fixes much of what diffusers lets choose.

A network that it would compute otherwise is refused, in both directions: its tensors would fit, and its pictures would
be wrong without a word.
"""

from collections.abc import Mapping
from typing import Any, Final

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import UNet

GROUPS: Final = 32  # of every normalisation in ldm/modules
_ATTENDS: Final = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}
# of an AutoencoderKL; its sizes are told, and what is not here (tiling, upcasting) is of no network
_VAE_FIXED: Final[dict[str, Any]] = {
    "act_fn": "silu",
    "norm_num_groups": GROUPS,
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


def attends(unet: UNet) -> tuple[bool, ...]:
    """Which levels of `unet` have attention, from the highest resolution on.

    Raises:
        UsageError: when the original code has no such blocks, or not on the way down and up alike.
    """
    strange = [kind for kind in (*unet.down_block_types, *unet.up_block_types) if kind not in _ATTENDS]
    if strange:
        raise _refused(f"model.unet has {strange[0]}", f"{', '.join(_ATTENDS)} alone")
    down, up = (
        tuple(_ATTENDS[kind] for kind in kinds) for kinds in (unet.down_block_types, reversed(unet.up_block_types))
    )
    if down != up:
        raise _refused("model.unet has attention on other levels down than up", "it on the same ones")
    return down


def unet_parameters(unet: UNet) -> dict[str, Any]:
    """What openaimodel.UNetModel is called with for `unet`; 64 px or 512 px are one to it.

    Raises:
        UsageError: when it has no such network.
    """
    widths, heads = unet.block_out_channels, unet.attention_head_dim
    if not unet.cross_attention_dim:
        raise _refused("model.unet takes no text", "text in this layout's UNets")
    if unet.norm_num_groups != GROUPS:
        raise _refused(f"model.unet.norm_num_groups={unet.norm_num_groups}", f"{GROUPS} in every normalisation")
    if any(width % heads for width in widths):
        raise _refused(f"model.unet.attention_head_dim={heads} does not divide each width", "heads of equal width")
    there = attends(unet)
    return {
        "image_size": 32,  # unused, as in v1-inference.yaml
        "in_channels": unet.latent_channels,
        "out_channels": unet.latent_channels,
        "model_channels": widths[0],
        "attention_resolutions": [2**level for level, attention in enumerate(there) if attention][::-1],
        "num_res_blocks": unet.layers_per_block,
        "channel_mult": _multiples("model.unet", widths),
        "num_heads": heads,
        "use_spatial_transformer": True,
        "transformer_depth": 1,
        "context_dim": unet.cross_attention_dim,
        "use_checkpoint": True,
        "legacy": False,
    }


def vae_parameters(config: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """What ldm.models.autoencoder.AutoencoderKL is called with, for a diffusers AutoencoderKL's configuration.

    Raises:
        UsageError: when it has no such network.
    """
    widths = tuple(config["block_out_channels"])
    fixed = _VAE_FIXED | {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    for key, value in fixed.items():
        found = config.get(key, value)
        if (tuple(found) if isinstance(found, list) else found) != value:
            raise _refused(f"the autoencoder has {key}={found}", f"{value}")
    latents = config["latent_channels"]
    return {
        "embed_dim": latents,
        "monitor": "val/rec_loss",
        "ddconfig": {
            "double_z": True,
            "z_channels": latents,
            "resolution": resolution,
            "in_channels": config["in_channels"],
            "out_ch": config["out_channels"],
            "ch": widths[0],
            "ch_mult": _multiples("the autoencoder", widths),
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
            **({} if config.get("mid_block_add_attention", True) else {"attn_type": "none"}),
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }


def _multiples(which: str, widths: tuple[int, ...]) -> list[int]:
    if any(width % widths[0] for width in widths):
        raise _refused(f"{which} has widths {list(widths)}", "whole multiples of the first")
    return [width // widths[0] for width in widths]


def _refused(found: str, has: str) -> UsageError:
    return UsageError(f"{found}, and the original code has {has}: keep to diffusers' layout")
