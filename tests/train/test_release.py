from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from bigdiff.checkpoint import layout
from bigdiff.config.errors import UsageError
from bigdiff.models.denoiser import Denoiser
from bigdiff.train import release

# an autoencoder's release is tested with a trained one, in tests/e2e/test_autoencoder.py


def test_a_diffusion_run_becomes_a_pipeline(trained: Callable[..., Denoiser], tmp_path: Path) -> None:
    source = trained(tmp_path)
    released = release.export(tmp_path / "toy", tmp_path / "out")
    assert released.checkpoint == layout.checkpoint(tmp_path / "toy", 7)
    assert released.note == ""
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert all(torch.equal(pipeline.unet.state_dict()[name], one) for name, one in source.unet.state_dict().items())


def test_a_layout_is_named(trained: Callable[..., Denoiser], tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(UsageError, match="layout=onnx is not one of diffusers, original"):
        release.export(tmp_path / "toy", tmp_path / "out", layout="onnx")
    with pytest.raises(UsageError, match="norm_num_groups=4"):  # tests/export/test_original.py has one that it can
        release.export(tmp_path / "toy", tmp_path / "out.safetensors", layout="original")
