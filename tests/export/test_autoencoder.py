from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from bigdiff.checkpoint import index
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Autoencoder
from bigdiff.export import autoencoder
from bigdiff.export.diffusers import Source
from bigdiff.models.autoencoder import build
from bigdiff.runtime.seeding import normal

TINY = Autoencoder(latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return build(TINY, 16).eval()


@pytest.fixture
def source(vae: AutoencoderKL, tmp_path: Path) -> Source:
    stage = load_stage("kl-f8")
    stage = replace(stage, resolution=16, model=replace(stage.model, autoencoder=TINY))
    weights = {f"vae.{name}": one.clone() for name, one in vae.state_dict().items()}
    weights["discriminator.main.0.bias"] = torch.zeros(4)  # which is not exported
    (tmp_path / "step").mkdir()
    file = index.File(name="x", bytes=0, sha256="")
    found = index.Index(
        state=TrainState(step=3, samples_seen=96),
        identity=Identity(seed=0, manifest="ab", total=32, order=""),
        layout=(),
        vectors=(),
        files=(),
        pieces=file,
        loss=None,
        about={},
    )
    index.write(tmp_path / "step", found)
    return Source(run=tmp_path, stage=stage, checkpoint=tmp_path / "step", which="raw", weights=weights)


def pictures(count: int = 10) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_scale_is_the_latents_spread(vae: AutoencoderKL) -> None:
    scale = autoencoder.measure(vae, [pictures()[:7], pictures()[7:]], seed=5)
    posterior = vae.encode(pictures().float() / 127.5 - 1).latent_dist
    latents = posterior.mean + posterior.std * normal(5, "posterior", torch.arange(10), (2, 8, 8))
    assert scale.pictures == 10
    assert scale.std == pytest.approx(float(latents.detach().std(correction=0)), rel=1e-5)
    assert float((latents.detach() * scale.factor).std()) == pytest.approx(1, rel=1e-3)


def test_latents_without_a_spread_are_refused(vae: AutoencoderKL) -> None:
    with pytest.raises(RunError, match="the latents of 0 pictures have a variance"):
        autoencoder.measure(vae, [], seed=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stock_diffusers_loads_the_same_autoencoder(
    source: Source, vae: AutoencoderKL, tmp_path: Path, dtype: str
) -> None:
    scale = autoencoder.export(source, [pictures()], tmp_path / "out", dtype)
    stock = AutoencoderKL.from_pretrained(tmp_path / "out")
    assert stock.config["scaling_factor"] == scale.factor
    for name, tensor in vae.state_dict().items():
        assert torch.equal(stock.state_dict()[name], tensor.to(getattr(torch, dtype)).float())
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| scaling factor | {scale.factor:.6g}: 1 / the latents' standard deviation over 10 pictures |" in text
    assert "| resolution | 16 px (2 x 8 x 8 latents) |" in text
    assert "| images seen | 96 |" in text


def test_an_earlier_export_is_replaced_and_nothing_else(source: Source, tmp_path: Path) -> None:
    autoencoder.export(source, [pictures()], tmp_path / "out")
    autoencoder.export(source, [pictures(5)], tmp_path / "out")
    assert "over 5 pictures" in (tmp_path / "out" / "README.md").read_text()
    for name, content in (("letter", "x"), ("model_index.json", "{}"), ("config.json", '{"_class_name": "Other"}')):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(UsageError, match="holds something else than an autoencoder"):
            autoencoder.export(source, [pictures()], folder)
    with pytest.raises(UsageError, match="dtype=int8 is not one of"):
        autoencoder.export(source, [pictures()], tmp_path / "new", "int8")


def test_another_networks_weights_are_refused(source: Source, tmp_path: Path) -> None:
    del source.weights["vae.decoder.conv_out.bias"]
    with pytest.raises(UsageError, match="does not fit"):
        autoencoder.export(source, [pictures()], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_loads_to_something_else_is_noticed(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    autoencoder.verify(vae, tmp_path)
    with torch.no_grad():
        vae.decoder.conv_out.bias += 1
    with pytest.raises(RunError, match=r"another decoder\.conv_out\.bias"):
        autoencoder.verify(vae, tmp_path)
    with torch.no_grad():
        vae.decoder.conv_out.bias.copy_(AutoencoderKL.from_pretrained(tmp_path).decoder.conv_out.bias)
    vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(RunError, match="another scaling factor"):
        autoencoder.verify(vae, tmp_path)
