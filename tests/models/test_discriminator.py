import pytest
import torch
from torch import nn

from bigdiff.models.discriminator import PatchDiscriminator, fooling, hinge


def test_three_layers_see_patches_of_seventy_pixels() -> None:
    net = PatchDiscriminator(channels=4, layers=3)
    for block in net.modules():
        if isinstance(block, nn.GroupNorm):  # a norm sees the whole picture; the convolutions do not
            block.forward = lambda values: values  # type: ignore[method-assign]
    pixels = torch.randn(1, 3, 256, 256, requires_grad=True)
    logits = net(pixels)
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    seen = pixels.grad[0].abs().sum(0).nonzero()  # type: ignore[index]
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_pix2pix_has_as_many_weights() -> None:
    # its code prints 2.769 million for six channels, picture and condition; three fewer are 3 x 64 x 4 x 4 less
    assert sum(one.numel() for one in PatchDiscriminator().parameters()) == 2_768_705 - 3 * 64 * 16


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_logit_depends_on_its_own_picture_alone(layers: int) -> None:
    torch.manual_seed(0)
    net, pixels = PatchDiscriminator(channels=8, layers=layers), torch.randn(4, 3, 32, 32)
    alone = torch.cat([net(one[None]) for one in pixels])
    torch.testing.assert_close(net(pixels), alone, rtol=1e-5, atol=1e-6)
    assert not any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in net.modules())


def test_the_losses_are_the_hinge_game() -> None:
    real, drawn = torch.tensor([2.0, 0.5]).view(2, 1, 1, 1), torch.tensor([-3.0, 0.25]).view(2, 1, 1, 1)
    assert hinge(real, drawn).tolist() == [0.0, 0.5 * (0.5 + 1.25)]
    assert fooling(drawn).tolist() == [3.0, -0.25]
