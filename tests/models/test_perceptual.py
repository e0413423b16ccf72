from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models import vgg16

from bigdiff.config.errors import UsageError
from bigdiff.models.perceptual import LEVELS, Perceptual, load

ENDS = (4, 9, 16, 23, 30)  # behind relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of torchvision's `features`


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of torchvision's VGG16 without its classifier, random."""
    torch.manual_seed(0)
    net = vgg16(weights=None)
    return {name: one for name, one in net.state_dict().items() if name.startswith("features.")}


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    """As lpips stores them, random, not negative."""
    torch.manual_seed(1)
    return {f"lin{number}.model.1.weight": torch.rand(1, widths[-1], 1, 1) for number, widths in enumerate(LEVELS)}


def written_out(weights: dict[str, Tensor], heads: list[Tensor] | None, first: Tensor, second: Tensor) -> Tensor:
    """The distance in torchvision's modules and plain sums."""
    net = vgg16(weights=None).features.to(first.dtype).eval()
    net.load_state_dict({name.removeprefix("features."): one for name, one in weights.items()})
    total = torch.zeros(len(first), dtype=first.dtype)
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=first.dtype).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=first.dtype).view(1, 3, 1, 1)
    for number, end in enumerate(ENDS):
        one, other = (net[:end]((pixels - shift) / scale) for pixels in (first, second))
        one = one / (one.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        other = other / (other.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        apart = (one - other) ** 2
        if heads is not None:
            apart = apart * heads[number].to(first.dtype)
        total += apart.sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("learned", [True, False])
def test_it_is_the_written_out_distance(weights: dict[str, Tensor], heads: dict[str, Tensor], learned: bool) -> None:
    linear = list(heads.values()) if learned else []
    net = Perceptual(weights, linear).double()
    first, second = torch.rand(2, 2, 3, 48, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        expected = written_out(weights, linear or None, first, second)
        torch.testing.assert_close(net(first, second), expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(net(second, first), expected, rtol=1e-9, atol=0)  # symmetric
    assert net(first, first).tolist() == [0.0, 0.0]
    assert (expected > 0).all()


def test_pixels_get_imagenets_statistics(weights: dict[str, Tensor]) -> None:
    net = Perceptual(weights)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.rand(1, 3, 2, 2)  # in [0, 1], where ImageNet's statistics are
    published = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close((pixels * 2 - 1 - net.shift) / net.scale, published, rtol=1e-5, atol=1e-5)


def test_its_gradient_is_a_number_where_no_channel_answers(weights: dict[str, Tensor]) -> None:
    silent = {name: -one.abs() if name.endswith("weight") else -torch.ones_like(one) for name, one in weights.items()}
    drawn = torch.rand(1, 3, 16, 16, requires_grad=True)
    Perceptual(silent)(torch.rand(1, 3, 16, 16), drawn).sum().backward()
    assert torch.equal(drawn.grad, torch.zeros_like(drawn))  # type: ignore[arg-type]


def test_files_of_both_kinds_load_and_nothing_is_trained(
    weights: dict[str, Tensor], heads: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "vgg.pth")
    safetensors.torch.save_file(weights, tmp_path / "vgg.safetensors")
    torch.save(heads, tmp_path / "heads.pth")
    pixels = torch.rand(2, 1, 3, 16, 16)
    nets = [load(str(tmp_path / f"vgg.{kind}"), str(tmp_path / "heads.pth")) for kind in ("pth", "safetensors")]
    assert torch.equal(nets[0](*pixels), nets[1](*pixels))
    assert not any(one.requires_grad for one in nets[0].parameters())
    assert not torch.equal(nets[0](*pixels), load(str(tmp_path / "vgg.pth"), "")(*pixels))


def test_what_cannot_be_used_is_named_with_its_mend(
    weights: dict[str, Tensor], heads: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "vgg.pth")
    torch.save(heads, tmp_path / "heads.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "heads.pth").read_bytes()[:100])
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(Path("x"), tmp_path / "object.pth")  # weights_only refuses it
    for vgg, linear, said in (
        ("absent.pth", "", "absent.pth: there is no such file; it is torchvision's vgg16-397923af.pth"),
        ("absent.pth", "", "perceptual_weight=0"),
        ("heads.pth", "", "does not hold VGG16's weights"),
        ("torn.pth", "", "cannot be read"),
        ("list.pth", "", "does not hold named tensors"),
        ("object.pth", "", "cannot be read"),
        ("vgg.pth", "vgg.pth", "does not hold LPIPS's heads"),
        ("vgg.pth", "absent.pth", "perceptual_heads"),
    ):
        with pytest.raises(UsageError, match=said):
            load(str(tmp_path / vgg), str(tmp_path / linear) if linear else "")
