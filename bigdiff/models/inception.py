"""Inception v3 with the weights that FID is defined by (Heusel et al. 2017), and what is done to a picture before it.

The network is torch-fidelity's, which repeats TensorFlow's poolings; torchvision's gives other features. Pictures of
any size are made 299 x 299 in one of two ways, whose numbers must not be mixed (Parmar et al. 2022):

- clean: Pillow's bicubic with antialiasing, channel by channel in float32, clipped to 0 to 255 and not rounded, as
  clean-fid does;
- legacy: TensorFlow 1's bilinear without antialiasing, as the original code and torch-fidelity do.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Resize
from bigdiff.models import tensors
from bigdiff.models.components import weights_sha256
from bigdiff.models.exact import exact
from bigdiff.runtime.files import sha256

VERSION: Final = 1  # of what is done to a picture before the network
SIDE: Final = 299  # pixels
WIDTH: Final = 2048  # features of a picture: the last pooling
_THREADS: Final = min(8, os.cpu_count() or 1)
PUBLISHED: Final = "6726825d"  # the file's sha256 begins so; pytorch-fid and torch-fidelity name the file by it
MEND: Final = (
    "download pt_inception-2015-12-05-6726825d.pth from the releases of mseitzer/pytorch-fid on GitHub (those of "
    "toshas/torch-fidelity have it as weights-inception-2015-12-05-6726825d.pth) and name where it is"
)


class Inception:
    """The network up to its last pooling, frozen, with its preprocessing."""

    def __init__(self, file: str, resize: Resize, device: torch.device, who: str = "--inception") -> None:
        """Read `file`; `who` wants it, in the user's words.

        Raises:
            UsageError: when it is not there, cannot be read, or holds other weights.
        """
        whole = _network(file, who)
        # in the order in which they were made, without the classifier
        self.trunk = nn.Sequential(*[one for name, one in whole.named_children() if name != "fc"], nn.Flatten())
        self.published = sha256(Path(file).expanduser()).startswith(PUBLISHED)
        known = "published" if self.published else "not the published weights"
        self.fingerprint = f"inception {VERSION}, weights {weights_sha256(whole)} ({known}), resize {resize}"
        self._resize, self._device = resize, device
        self.trunk.to(device)

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features fp32 [B, 2048], on the CPU, of RGB pictures of any sizes."""
        with exact():
            found: Tensor = self.trunk(self.pixels(pictures).to(self._device)).float().cpu()
        return found

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the network sees, fp32 [B, 3, 299, 299]: (value - 128) / 128."""
        way = clean if self._resize == "clean" else legacy
        with ThreadPoolExecutor(_THREADS) as pool:  # 17 to 37 ms of a core for 512 px
            return torch.stack([(values - 128) / 128 for values in pool.map(way, pictures)])


def clean(picture: Image.Image) -> Tensor:
    """fp32 [3, 299, 299], 0 to 255, as clean-fid resizes."""
    values = [
        np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for one in np.moveaxis(np.asarray(picture, np.float32), -1, 0)
    ]
    return torch.from_numpy(np.stack(values).clip(0, 255))


def legacy(picture: Image.Image) -> Tensor:
    """fp32 [3, 299, 299], 0 to 255, as TensorFlow 1's resize_bilinear gives it."""
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(whole, size=(SIDE, SIDE), align_corners=False)
    return resized[0]


def _network(file: str, who: str) -> nn.Module:
    """The library's network, which would unpickle the file: it gets a copy of the tensors that were read safely."""
    state = tensors.read(file, who, MEND)
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UsageError(f"{who}: weights file {file} has {name} with values that are not finite; {MEND}")
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception", [str(WIDTH)], feature_extractor_weights_path=copy)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{who}: weights file {file} is of another model ({reason}); {MEND}") from error
    return network
