"""LPIPS: the distance of two pictures in the features of a trained VGG16 (Zhang et al. 2018, eq. 1).

Nothing is downloaded: the weights are files that the stage names. Version 0.1 of the published implementation, whose
numbers these are: pixels in [-1, 1] are shifted and scaled to ImageNet's statistics, the features of five layers are
normalised over their channels, and the squared differences are weighted by the linear heads and averaged over the
picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from bigdiff.config.errors import UsageError

SHIFT: Final = (-0.030, -0.088, -0.188)
SCALE: Final = (0.458, 0.448, 0.450)
EPS: Final = 1e-10
# VGG16's convolutions (Simonyan & Zisserman 2015, table 1, D): widths by level; a level's last features are compared
LEVELS: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LEAST_SIDE: Final = 2 ** (len(LEVELS) - 1)  # pixels: so that the last level still has one
HOW_VGG: Final = (
    "it is torchvision's vgg16-397923af.pth, which torchvision.models.vgg16(weights='IMAGENET1K_V1') fetches"
)
HOW_HEADS: Final = "it is lpips/weights/v0.1/vgg.pth of the package lpips; '' compares the features without heads"


class Perceptual(nn.Module):
    """The frozen network; a distance per sample.

    Takes torchvision's names of the convolutions ("features.0.weight", ...) and, by level, one head weight [1, C, 1, 1]
    each or none: then all channels count alike, as the paper's unlearned baseline does.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Mapping[str, Tensor], heads: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        width, place = 3, 0  # a convolution and its ReLU are two of torchvision's modules, the pooling one more
        for widths in LEVELS:
            level = nn.ModuleList()
            for wide in widths:
                convolution = nn.Conv2d(width, wide, 3, padding=1)
                for name, parameter in convolution.named_parameters():
                    parameter.data.copy_(weights[f"features.{place}.{name}"])
                level.append(convolution)
                width, place = wide, place + 2
            self.levels.append(level)
            place += 1
        self.heads = nn.ParameterList([head.detach().clone() for head in heads])
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None])
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Distances [B] of pictures [B, 3, H, W] in [-1, 1]; a gradient reaches `drawn` alone."""
        with torch.no_grad():
            wanted = [_normalised(one) for one in self.features(pixels)]
        distance = torch.zeros(len(drawn), dtype=drawn.dtype, device=drawn.device)
        for number, features in enumerate(self.features(drawn)):
            difference = (_normalised(features) - wanted[number]).square()
            weighted = functional.conv2d(difference, self.heads[number]) if len(self.heads) else difference.sum(1)
            distance = distance + weighted.flatten(1).mean(1)
        return distance

    def features(self, pixels: Tensor) -> list[Tensor]:
        """The last features after ReLU of each level, [B, C, h, w]."""
        now, found = (pixels - self.shift) / self.scale, []
        for number, level in enumerate(self.levels):
            if number:
                now = functional.max_pool2d(now, 2)
            assert isinstance(level, nn.ModuleList)
            for convolution in level:
                now = torch.relu(convolution(now))
            found.append(now)
        return found


def _normalised(features: Tensor) -> Tensor:
    # vector_norm, whose gradient at 0 is 0: that of sqrt(sum(x^2)) is not a number where no channel answers
    norms: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (norms + EPS)


def load(vgg: str, heads: str) -> Perceptual:
    """The network from files of torchvision's VGG16 weights and of LPIPS's heads ("": without).

    Raises:
        UsageError: naming the file, what it should hold and where that comes from.
    """
    weights = _read(Path(vgg), "model.autoencoder.perceptual_vgg", HOW_VGG)
    linear: list[Tensor] = []
    if heads:
        found = _read(Path(heads), "model.autoencoder.perceptual_heads", HOW_HEADS)
        names = [f"lin{number}.model.1.weight" for number in range(len(LEVELS))]
        if any(name not in found or found[name].shape != (1, LEVELS[at][-1], 1, 1) for at, name in enumerate(names)):
            raise UsageError(f"model.autoencoder.perceptual_heads={heads} does not hold LPIPS's heads: {HOW_HEADS}")
        linear = [found[name] for name in names]
    try:
        return Perceptual(weights, linear)
    except (KeyError, RuntimeError) as error:
        raise UsageError(f"model.autoencoder.perceptual_vgg={vgg} does not hold VGG16's weights: {HOW_VGG}") from error


def _read(file: Path, key: str, how: str) -> dict[str, Tensor]:
    """Named tensors of a .safetensors or .pth file; nothing else is unpickled."""
    if not file.is_file():
        raise UsageError(
            f"{key}={file}: there is no such file; {how}. Without it: model.autoencoder.perceptual_weight=0"
        )
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        raise UsageError(f"{key}={file} cannot be read ({type(error).__name__}); {how}") from error
    if not isinstance(content, dict) or not all(isinstance(one, Tensor) for one in content.values()):
        raise UsageError(f"{key}={file} does not hold named tensors; {how}")
    return content
