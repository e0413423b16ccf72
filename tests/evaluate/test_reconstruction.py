import numpy as np
import torch

from bigdiff.config.schema import Autoencoder
from bigdiff.evaluate.grid import GAP
from bigdiff.evaluate.reconstruction import Reconstructor
from bigdiff.models.autoencoder import build

TINY = Autoencoder(latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)


def test_originals_stand_beside_their_reconstructions() -> None:
    torch.manual_seed(0)
    vae = build(TINY, 8).eval()
    pictures = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    weights = {f"vae.{name}": one for name, one in vae.state_dict().items()}
    frozen = {name: weights.pop(name) for name in list(weights) if ".encoder." in name}
    grid = Reconstructor(TINY, pictures, frozen).draw(weights | {"discriminator.main.0.bias": torch.zeros(1)})
    assert grid.shape == (3 * (8 + GAP) - GAP, 4 * (8 + GAP) - GAP, 3)
    cells = [
        grid[row * (8 + GAP) : row * (8 + GAP) + 8, column * (8 + GAP) : column * (8 + GAP) + 8]
        for row in range(3)
        for column in range(4)
    ]
    with torch.no_grad():
        drawn = vae(pictures.float() / 127.5 - 1).sample.clamp(-1, 1)  # of the posterior's mean
    redrawn = ((drawn + 1) * 127.5).round().to(torch.uint8)
    for number, picture in enumerate(pictures):
        assert np.array_equal(cells[2 * number], picture.permute(1, 2, 0).numpy())
        assert np.array_equal(cells[2 * number + 1], redrawn[number].permute(1, 2, 0).numpy())
