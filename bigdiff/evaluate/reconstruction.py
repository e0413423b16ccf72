"""What an autoencoder makes of the same pictures while it trains: originals beside their reconstructions."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from bigdiff.config.schema import Autoencoder
from bigdiff.evaluate.grid import Pictures, tiled
from bigdiff.models.autoencoder import build
from bigdiff.models.denoiser import part
from bigdiff.models.encoders import in_range

TOGETHER = 4  # pictures drawn at once, which bounds the memory


class Reconstructor:
    """Draws pictures uint8 [N, 3, H, W] from the mean of the posterior; no memory beyond the weights it is given."""

    def __init__(self, config: Autoencoder, pictures: Tensor, frozen: Mapping[str, Tensor]) -> None:
        self.pictures = pictures
        self.frozen = frozen  # weights that are not trained, "vae.*"
        with torch.device("meta"):  # the network's shape; its weights come with each call
            self.vae = build(config, pictures.shape[-1]).eval()

    def draw(self, weights: dict[str, Tensor]) -> Pictures:
        """A uint8 [H, W, 3] grid of pairs from weights named "vae.*": each original, then its reconstruction."""
        device = next(iter(weights.values())).device
        whole = {**{name: one.to(device) for name, one in self.frozen.items()}, **weights}
        vae = part(whole, "vae.")
        drawn = []
        with torch.inference_mode():
            for some in torch.split(self.pictures, TOGETHER):
                pixels = in_range(some.to(device))
                drawn.append(functional_call(self.vae, vae, (pixels,)).sample.clamp(-1, 1).cpu())
        redrawn = ((torch.cat(drawn) + 1) * 127.5).round().to(torch.uint8)
        pairs = torch.stack((self.pictures.cpu(), redrawn), dim=1).flatten(0, 1).permute(0, 2, 3, 1)
        return tiled(np.ascontiguousarray(pairs.numpy()), columns=2 * max(1, round((len(self.pictures) / 2) ** 0.5)))
