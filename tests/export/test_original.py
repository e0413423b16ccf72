import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.schema import UNet
from bigdiff.export import diffusers, original
from bigdiff.models import components
from bigdiff.models import original as names
from bigdiff.models.denoiser import Denoiser
from bigdiff.models.original_settings import attends
from bigdiff.models.pretrained import load_unet

Trained = Callable[..., Denoiser]


def source(runs: Path, weights: str = "ema") -> diffusers.Source:
    return diffusers.read(runs / "toy", weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_stock_diffusers_reads_the_file(grouped: Trained, tmp_path: Path, dtype: str) -> None:
    trained = grouped(tmp_path, "model.text.train=true")
    original.export(source(tmp_path), tmp_path / "out" / "toy.safetensors", dtype)
    kind = getattr(torch, dtype)
    diffusers.export(tmp_path / "toy", tmp_path / "folder", dtype=dtype)
    stock, folder = (
        StableDiffusionPipeline.from_single_file(
            str(tmp_path / "out" / "toy.safetensors"), config=str(tmp_path / "folder"), torch_dtype=kind
        ),
        StableDiffusionPipeline.from_pretrained(tmp_path / "folder", torch_dtype=kind),
    )
    for part in ("unet", "vae", "text_encoder"):
        wanted, found = getattr(folder, part).state_dict(), getattr(stock, part).state_dict()
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert all(
        torch.equal(stock.unet.state_dict()[name], one.to(kind)) for name, one in trained.unet.state_dict().items()
    )
    assert torch.equal(diffusers.prediction(stock.unet), diffusers.prediction(folder.unet))
    assert torch.equal(original.picture(stock.vae), original.picture(folder.vae))
    assert torch.equal(original.states(stock.text_encoder), original.states(folder.text_encoder))
    with safe_open(tmp_path / "out" / "toy.safetensors", framework="pt") as stored:
        assert stored.get_tensor("alphas_cumprod").dtype == torch.float32
        assert stored.get_tensor(names.POSITIONS).tolist() == [list(range(12))]


def test_stock_diffusers_makes_the_networks_of_the_yaml(grouped: Trained, tmp_path: Path) -> None:
    """They fit the file's tensors, of which none is left over, and compute the same."""
    grouped(tmp_path)
    file = tmp_path / "toy.safetensors"
    original.export(source(tmp_path), file)
    built = diffusers.build(source(tmp_path))
    told = str(file.with_suffix(".yaml"))
    unet = UNet2DConditionModel.from_single_file(str(file), original_config=told, low_cpu_mem_usage=False)
    vae = AutoencoderKL.from_single_file(str(file), original_config=told, low_cpu_mem_usage=False)
    unet.register_to_config(sample_size=4)
    assert torch.equal(diffusers.prediction(unet), diffusers.prediction(built.unet))
    assert torch.equal(original.picture(vae), original.picture(built.vae))
    assert vae.config["scaling_factor"] == built.vae.config["scaling_factor"] == 0.3


def test_every_network_comes_back_and_goes_again(grouped: Trained, tmp_path: Path) -> None:
    """Original layout -> our mapping -> diffusers' folder -> original layout: the same tensors under the same names."""
    grouped(tmp_path)
    original.export(source(tmp_path), tmp_path / "toy.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "toy.safetensors")
    pipeline = diffusers.build(source(tmp_path, "raw"))  # other weights: all must be replaced
    given = load_unet(str(tmp_path / "toy.safetensors"), source(tmp_path).stage.model.unet, pipeline.unet).tensors
    raw = pipeline.unet.state_dict()  # the average is half of it, see `trained`
    assert all(torch.equal(2 * given[name], tensor) for name, tensor in raw.items())
    for part, places in original.placed(source(tmp_path), pipeline).items():
        network = getattr(pipeline, part)
        own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        network.load_state_dict(names.from_original(places, stored, own))
        network.save_pretrained(tmp_path / part)
        again = type(network).from_pretrained(tmp_path / part)
        there = names.to_original(places, again.state_dict())
        assert all(torch.equal(stored.pop(name), tensor) for name, tensor in there.items())
    assert all("model" not in name or name == names.POSITIONS for name in stored)  # nothing but buffers is left


@pytest.fixture(scope="module")
def sd_v1() -> UNet2DConditionModel:
    """SD v1.5's UNet in bf16, 1.7 GB: each tensor has another part of a pool of random numbers."""
    unet = empty()
    pool = (0.02 * torch.randn(1 << 25, generator=torch.Generator().manual_seed(0))).bfloat16()
    parts = {
        name: pool[4001 * number :][: tensor.numel()].reshape(tensor.shape).clone()
        for number, (name, tensor) in enumerate(unet.state_dict().items())
    }
    unet.load_state_dict(parts, assign=True)
    return unet.eval()


def empty() -> UNet2DConditionModel:
    with torch.device("meta"):
        return components.build_unet(UNet(), 8)


def test_sd_v1s_unet_goes_through_both_layouts_and_stock_diffusers_agrees(
    sd_v1: UNet2DConditionModel, tmp_path: Path
) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in sd_v1.state_dict().items()}
    places = names.unet_places(own, attends(UNet()), 2)
    file = tmp_path / "sd.safetensors"
    safetensors.torch.save_file(names.to_original(places, sd_v1.state_dict()), file)
    imported = empty()
    imported.load_state_dict(load_unet(str(file), UNet(), imported).tensors, assign=True)
    imported.save_pretrained(tmp_path / "unet")
    back = names.to_original(places, load_unet(str(tmp_path / "unet"), UNet(), imported).tensors)
    with safe_open(file, framework="pt") as stored:
        assert set(stored.keys()) == back.keys()
        assert all(torch.equal(stored.get_tensor(name), tensor) for name, tensor in back.items())
    stock = UNet2DConditionModel.from_single_file(
        str(file), config=str(tmp_path / "unet"), torch_dtype=torch.bfloat16, low_cpu_mem_usage=False
    )
    wanted = diffusers.prediction(sd_v1)
    assert wanted.isfinite().all() and wanted.std() > 0
    assert torch.equal(diffusers.prediction(stock), wanted)
    shutil.rmtree(tmp_path)  # 3.4 GB, which pytest would keep


def test_what_lies_beside_the_file(grouped: Trained, tmp_path: Path) -> None:
    grouped(tmp_path)
    written = original.export(source(tmp_path, "raw"), tmp_path / "toy.safetensors", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy", "toy.md", "toy.safetensors", "toy.yaml"]
    content = yaml.safe_load((tmp_path / "toy.yaml").read_text())
    assert content["model"]["params"]["unet_config"]["params"]["channel_mult"] == [1, 2]
    card = (tmp_path / "toy.md").read_text().splitlines()
    assert f"| weights | {source(tmp_path, 'raw').which}, float16 |" in card
    assert "| started from | random weights |" in card
    assert [line for line in card if line.startswith("- ")] == [f"- {one}" for one in written.untold]
    assert any("not CLIP ViT-L/14's" in one for one in written.untold)


def test_an_earlier_export_is_replaced_and_nothing_else(grouped: Trained, tmp_path: Path) -> None:
    grouped(tmp_path)
    file = tmp_path / "toy.safetensors"
    original.export(source(tmp_path), file)
    before = file.read_bytes()
    original.export(source(tmp_path, "raw"), file)
    assert file.read_bytes() != before
    safetensors.torch.save_file({"mine": torch.zeros(1)}, tmp_path / "mine.safetensors")
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "text.safetensors").write_text("mine")
    for name, sentence in (
        ("mine.safetensors", "something else than an earlier export"),
        ("text.safetensors", "something else than an earlier export"),
        ("notes.safetensors", r"notes\.md is there without"),
        ("folder", r"must end in \.safetensors"),
    ):
        with pytest.raises(UsageError, match=sentence):
            original.export(source(tmp_path), tmp_path / name)
    with pytest.raises(UsageError, match="dtype=int8 is not one of"):
        original.export(source(tmp_path), file, "int8")
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_networks_that_the_original_code_has_not_are_refused_before_anything_is_written(
    trained: Trained, tmp_path: Path
) -> None:
    trained(tmp_path)
    with pytest.raises(UsageError, match="norm_num_groups=4, and the original code has 32"):
        original.export(source(tmp_path), tmp_path / "toy.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_file_that_loads_to_something_else_is_noticed(grouped: Trained, tmp_path: Path) -> None:
    grouped(tmp_path)
    pipeline = diffusers.build(source(tmp_path))
    content = {name: one.clone() for name, one in original.tensors(source(tmp_path), pipeline).items()}
    file = tmp_path / "toy.safetensors"
    safetensors.torch.save_file(content, file)
    original.verify_tensors(content, file)
    original.verify(pipeline, file)
    content["betas"][0] += 1e-6
    with pytest.raises(RunError, match="betas is read back otherwise"):
        original.verify_tensors(content, file)
    for name, part in (
        ("model.diffusion_model.out.2.bias", r"unet loads with another conv_out\.bias"),
        ("first_stage_model.quant_conv.bias", r"vae loads with another quant_conv\.bias"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text_encoder loads with another"),
    ):
        other = {key: one + 1 if key == name else one for key, one in content.items()}
        safetensors.torch.save_file(other, file)
        with pytest.raises(RunError, match=part):
            original.verify(pipeline, file)
