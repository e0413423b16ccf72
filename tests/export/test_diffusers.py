from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from bigdiff.checkpoint import layout
from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.schema import Diffusion
from bigdiff.diffusion.schedule import alphas_cumprod
from bigdiff.export import diffusers
from bigdiff.models.denoiser import Denoiser

Trained = Callable[..., Denoiser]


def load(folder: Path) -> StableDiffusionPipeline:
    """Stock diffusers, as a user calls it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_stock_diffusers_loads_the_folder_and_samples(pipeline: Path, kind: type) -> None:
    stock = load(pipeline)
    stock.scheduler = kind.from_config(stock.scheduler.config)
    images = stock(
        ["a red circle", "a blue square"], num_inference_steps=4, guidance_scale=3.0, output_type="np"
    ).images
    assert images.shape == (2, 8, 8, 3)
    assert images.std() > 0


def test_the_loaded_unet_predicts_what_the_trained_one_does(trained: Trained, tmp_path: Path) -> None:
    source = trained(tmp_path, "model.text.train=true")
    diffusers.export(tmp_path / "toy", tmp_path / "out")
    stock = load(tmp_path / "out")
    noisy, timesteps = torch.randn(2, 2, 4, 4), torch.tensor([3, 900])
    ids = torch.tensor([[49406, *range(300, 310), 49407]] * 2)
    with torch.no_grad():
        expected = source(noisy, timesteps, ids)
        found = stock.unet(noisy, timesteps, stock.text_encoder(ids)[0]).sample
    assert float((found - expected).abs().max()) <= 1e-6
    assert float(expected.abs().max()) > 1e-3


def test_raw_weights_and_a_frozen_text_encoder_are_exported_as_they_are(trained: Trained, tmp_path: Path) -> None:
    source = trained(tmp_path)
    built = diffusers.build(diffusers.read(tmp_path / "toy", "raw"))
    for name, parameter in source.unet.state_dict().items():
        assert torch.equal(built.unet.state_dict()[name], 2 * parameter)
    for name, tensor in source.text_encoder.state_dict().items():
        assert torch.equal(built.text_encoder.state_dict()[name], tensor)
    assert not any(parameter.requires_grad for parameter in built.unet.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_the_rounded_float32(trained: Trained, tmp_path: Path, dtype: str) -> None:
    source = trained(tmp_path)
    diffusers.export(tmp_path / "toy", tmp_path / "out", dtype=dtype)
    files = sorted(path.parent.name for path in (tmp_path / "out").rglob("*.safetensors"))
    assert files == ["text_encoder", "unet", "vae"]
    stored = safetensors.torch.load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    for name, parameter in source.unet.state_dict().items():
        assert torch.equal(stored[name], parameter.to(getattr(torch, dtype)))
    with pytest.raises(UsageError, match="float8"):
        diffusers.export(tmp_path / "toy", tmp_path / "out", dtype="float8")


@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_the_scheduler_has_the_stages_betas_and_target(target: str) -> None:
    for diffusion in (
        Diffusion(prediction_type=target),  # type: ignore[arg-type]
        Diffusion(prediction_type=target, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, train_timesteps=500),  # type: ignore[arg-type]
    ):
        made = diffusers.scheduler(diffusion)
        assert torch.allclose(made.alphas_cumprod.double(), alphas_cumprod(diffusion), rtol=1e-4)
        assert made.config["prediction_type"] == target
        assert (made.config["clip_sample"], made.config["set_alpha_to_one"], made.config["steps_offset"]) == (
            False,
        ) * 2 + (1,)
        assert (made.config["rescale_betas_zero_snr"], made.config["timestep_spacing"]) == (False, "leading")


@pytest.mark.parametrize("target", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_sampled_from_the_last_timestep_on(target: str) -> None:
    diffusion = Diffusion(prediction_type=target, zero_terminal_snr=True)  # type: ignore[arg-type]
    made = diffusers.scheduler(diffusion)
    torch.testing.assert_close(made.alphas_cumprod.double(), alphas_cumprod(diffusion), rtol=1e-4, atol=1e-9)
    assert made.alphas_cumprod[-1] == 0
    made.set_timesteps(4)
    assert made.timesteps.tolist() == [999, 749, 499, 249]


def test_readers_of_vocab_json_and_merges_txt_get_the_same_ids(pipeline: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((pipeline / "tokenizer" / name).read_bytes())
    old, new = CLIPTokenizer.from_pretrained(tmp_path), CLIPTokenizer.from_pretrained(pipeline / "tokenizer")
    texts = ["a red circle", "It's 12 caf\u00e9s!"]
    assert old(texts)["input_ids"] == new(texts)["input_ids"]
    assert old.model_max_length == new.model_max_length == 12


def test_the_text_encoder_has_the_names_that_all_versions_read(pipeline: Path, toy: Path) -> None:
    stored = safetensors.torch.load_file(pipeline / "text_encoder" / "model.safetensors")
    assert "text_model.embeddings.token_embedding.weight" in stored  # as CLIP ViT-L/14's were published
    assert all(name.startswith("text_model.") for name in stored)
    stock = CLIPTextModel.from_pretrained(pipeline / "text_encoder").state_dict()
    source = CLIPTextModel.from_pretrained(toy / "text_encoder").state_dict()
    assert stock.keys() == source.keys() and all(torch.equal(stock[name], one) for name, one in source.items())


def test_a_damaged_checkpoint_gives_way_to_the_one_before(trained: Trained, tmp_path: Path) -> None:
    trained(tmp_path, step=3)
    source = trained(tmp_path, step=5)
    assert diffusers.read(tmp_path / "toy", "ema").checkpoint == layout.checkpoint(tmp_path / "toy", 5)
    newest = layout.checkpoint(tmp_path / "toy", 5) / layout.shard(0, 1)
    newest.write_bytes(newest.read_bytes()[:-8])
    found = diffusers.read(tmp_path / "toy", "ema")
    assert found.checkpoint == layout.checkpoint(tmp_path / "toy", 3)
    assert not torch.equal(found.weights["unet.conv_in.weight"], source.unet.conv_in.weight)
    older = layout.checkpoint(tmp_path / "toy", 3) / layout.shard(0, 1)
    older.unlink()
    with pytest.raises(UsageError, match="missing"):
        diffusers.read(tmp_path / "toy", "ema")


def test_the_checkpoint_of_a_step_is_exported_where_it_is_asked_for(trained: Trained, tmp_path: Path) -> None:
    source = trained(tmp_path, step=3)
    trained(tmp_path, step=5)
    found = diffusers.export(tmp_path / "toy", tmp_path / "out", step=3)
    assert found.checkpoint == layout.checkpoint(tmp_path / "toy", 3)
    assert torch.equal(load(tmp_path / "out").unet.state_dict()["conv_in.weight"], source.unet.conv_in.weight)
    with pytest.raises(UsageError, match="no checkpoint of step 4: it has those of 3, 5"):
        diffusers.read(tmp_path / "toy", "ema", 4)
    (layout.checkpoint(tmp_path / "toy", 3) / layout.shard(0, 1)).unlink()  # no other stands in for it
    with pytest.raises(UsageError, match="missing"):
        diffusers.read(tmp_path / "toy", "ema", 3)


def test_what_cannot_be_exported_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.yaml"):
        diffusers.export(tmp_path, tmp_path / "out")
    trained(tmp_path)
    config = tmp_path / "toy" / layout.CONFIG
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        diffusers.export(tmp_path / "toy", tmp_path / "mine")
    config.write_text(config.read_text().replace("layers_per_block: 1", "layers_per_block: 2"))
    with pytest.raises(UsageError, match="does not fit"):
        diffusers.export(tmp_path / "toy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_whole(trained: Trained, tmp_path: Path) -> None:
    trained(tmp_path, step=3)
    diffusers.export(tmp_path / "toy", tmp_path / "out")
    (tmp_path / "out" / "stale.txt").write_text("of the earlier export")
    source = trained(tmp_path, step=5)
    diffusers.export(tmp_path / "toy", tmp_path / "out")
    stored = safetensors.torch.load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(stored["conv_in.weight"], source.unet.conv_in.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "toy"]
    assert not (tmp_path / "out" / "stale.txt").exists()


def test_the_check_sees_a_changed_tensor(trained: Trained, tmp_path: Path) -> None:
    trained(tmp_path)
    source = diffusers.build(diffusers.read(tmp_path / "toy", "ema"))
    source.save_pretrained(tmp_path / "out")
    diffusers.verify(source, tmp_path / "out")
    file = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] += 1e-4
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"another conv_in\.weight"):
        diffusers.verify(source, tmp_path / "out")


def test_weights_that_are_not_the_networks_are_refused(trained: Trained, tmp_path: Path) -> None:
    trained(tmp_path)
    source = diffusers.read(tmp_path / "toy", "ema")
    fewer = {name: one for name, one in source.weights.items() if name != "unet.conv_out.bias"}
    with pytest.raises(UsageError, match=r"conv_out\.bias"):
        diffusers.build(replace(source, weights=fewer))
