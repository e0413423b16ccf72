"""Where the tensors of diffusers' networks lie in the original code's checkpoints: one mapping, for both directions.

The original code (CompVis/stable-diffusion: ldm/modules/diffusionmodules/openaimodel.py and model.py) numbers a UNet's
blocks through, and its autoencoder's attention has convolutions of one pixel where diffusers has matrices. The tensors
of a part have the part's name as their prefix in either layout, and the same ending. So prefixes are listed here, as
functions of the network's sizes; a network's own names say which tensors there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
TEXT: Final = "cond_stage_model.transformer.text_model."
POSITIONS: Final = f"{TEXT}embeddings.position_ids"  # int64 [1, L], which CLIP's text model stored until 2023
_UNET_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET: Final = {one: one for one in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION: Final = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_PIXEL: Final = (1, 1)  # a convolution's kernel where diffusers has a matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a tensor lies in the original layout."""

    name: str
    shape: tuple[int, ...]


Shapes = Mapping[str, Sequence[int]]  # of a network's tensors, by its own names
Places = dict[str, Place]  # by the same names


def unet_places(own: Shapes, attends: Sequence[bool], layers: int) -> Places:
    """Of a UNet2DConditionModel with `layers` residual blocks on each level; `attends`: which levels have attention."""
    levels = len(attends)
    table = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    for block, there in enumerate((0, 2)):
        table |= _below(f"mid_block.resnets.{block}", f"middle_block.{there}", _UNET_RESNET)
    number = 0  # the first input block is conv_in
    for level, attention in enumerate(attends):
        for layer in range(layers):
            number += 1
            table |= _unet_layer(f"down_blocks.{level}", layer, f"input_blocks.{number}", attention)
        if level < levels - 1:
            number += 1
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
    number = 0
    for level, attention in enumerate(reversed(attends)):
        for layer in range(layers + 1):  # one for each of the way down's skips
            table |= _unet_layer(f"up_blocks.{level}", layer, f"output_blocks.{number}", attention)
            number += 1
        if level < levels - 1:  # in the same output block, after the attention
            table[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{1 + attention}.conv"
    return _places(own, table, UNET)


def vae_places(own: Shapes, levels: int, layers: int, prefix: str = VAE) -> Places:
    """Of an AutoencoderKL with `layers` residual blocks on each level of the encoder, one more in the decoder."""
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        table |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        table[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        table |= _below(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _VAE_ATTENTION)
        for block in range(2):
            table |= _below(f"{half}.mid_block.resnets.{block}", f"{half}.mid.block_{block + 1}", _VAE_RESNET)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        down_there, up_there = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"  # numbered by resolution
        for layer in range(layers):
            table |= _below(f"{down}.resnets.{layer}", f"{down_there}.block.{layer}", _VAE_RESNET)
        for layer in range(layers + 1):
            table |= _below(f"{up}.resnets.{layer}", f"{up_there}.block.{layer}", _VAE_RESNET)
        table[f"{down}.downsamplers.0.conv"] = f"{down_there}.downsample.conv"
        table[f"{up}.upsamplers.0.conv"] = f"{up_there}.upsample.conv"
    return _places(own, table, prefix)


def text_places(own: Shapes) -> Places:
    """Of a CLIPTextModel; its own names begin with "text_model." or, in transformers since 5.6, do not."""
    return {
        name: Place(name=TEXT + name.removeprefix("text_model."), shape=tuple(shape)) for name, shape in own.items()
    }


def to_original(places: Places, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors, by its own names, under the original's names and in its shapes."""
    return {place.name: tensors[name].reshape(place.shape) for name, place in places.items()}


def from_original(places: Places, tensors: Mapping[str, Tensor], own: Shapes) -> dict[str, Tensor]:
    """The reverse of `to_original`, for tensors that have the places' shapes; others in `tensors` are left out."""
    return {name: tensors[place.name].reshape(tuple(own[name])) for name, place in places.items()}


def _unet_layer(block: str, layer: int, there: str, attention: bool) -> dict[str, str]:
    table = _below(f"{block}.resnets.{layer}", f"{there}.0", _UNET_RESNET)
    return table | ({f"{block}.attentions.{layer}": f"{there}.1"} if attention else {})


def _below(prefix: str, there: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{own}": f"{there}.{original}" for own, original in parts.items()}


def _places(own: Shapes, table: Mapping[str, str], prefix: str) -> Places:
    """The place of each tensor in `own`, by the prefixes in `table`."""
    places = {}
    for name, shape in own.items():
        known = name
        while known and known not in table:
            known = known.rpartition(".")[0]
        assert known, f"{name} is of no part that the original code's networks have"
        there = table[known] + name[len(known) :]
        matrix = ".attn_1." in there and len(shape) == 2
        places[name] = Place(name=prefix + there, shape=(*shape, *(_PIXEL if matrix else ())))
    return places
