from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bigdiff.config.load import load_stage
from bigdiff.evaluate.grid import GAP
from bigdiff.evaluate.preview import Beside, Previewer
from bigdiff.export.diffusers import export
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser
from bigdiff.runtime.seeding import normal

PROMPTS = ("a red circle", "a blue square")
PREVIEW = ("preview.every=5", "preview.prompts=[a red circle,a blue square]", "preview.steps=4", "preview.guidance=4")


@pytest.mark.parametrize(
    "options",
    [
        ("model.text.train=true",),
        ("diffusion.prediction_type=v_prediction",),
        ("diffusion.prediction_type=v_prediction", "diffusion.zero_terminal_snr=true"),
        ("diffusion.prediction_type=sample", "diffusion.zero_terminal_snr=true"),
    ],
)
def test_a_preview_is_what_the_exported_pipeline_draws(
    trained: Callable[..., Denoiser], toy: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    ema = trained(tmp_path, *PREVIEW, *options)
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", *PREVIEW, *options])
    vae = components.load_vae(stage.model.vae.source)
    text_encoder = components.load_text_encoder(stage.model.text.encoder)
    tokenizer = components.load_tokenizer(stage.model.text.tokenizer, 12)
    previewer = Previewer(stage, Beside(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer))
    before = components.weights_sha256(text_encoder)
    picture = previewer.draw({name: one.detach() for name, one in ema.trained().items()})
    assert components.weights_sha256(text_encoder) == before  # the weights being trained are not touched
    assert picture.dtype == np.uint8
    assert picture.shape == (8, 2 * 8 + GAP, 3)

    export(tmp_path / "toy", tmp_path / "out")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    latents = normal(stage.seed, "preview", torch.arange(2), (2, 4, 4))
    drawn = stock(list(PROMPTS), latents=latents, num_inference_steps=4, guidance_scale=4.0).images
    for place, image in enumerate(drawn):
        left = place * (8 + GAP)
        assert np.abs(picture[:, left : left + 8].astype(int) - np.asarray(image).astype(int)).max() <= 1
    assert picture[:, :8].std() > 0


def test_each_scale_of_guidance_is_a_row_from_the_same_noise(
    trained: Callable[..., Denoiser], toy: Path, tmp_path: Path
) -> None:
    ema = trained(tmp_path, *PREVIEW)
    weights = {name: one.detach() for name, one in ema.trained().items()}

    def drawn(*options: str) -> np.ndarray[Any, Any]:
        stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", *PREVIEW, *options])
        beside = Beside(
            vae=components.load_vae(stage.model.vae.source),
            text_encoder=components.load_text_encoder(stage.model.text.encoder),
            tokenizer=components.load_tokenizer(stage.model.text.tokenizer, 12),
        )
        return Previewer(stage, beside).draw(weights)

    several = drawn("preview.more_guidance=[1,7.5]")
    assert several.shape == (3 * 8 + 2 * GAP, 2 * 8 + GAP, 3)
    for row, scale in enumerate((4, 1, 7.5)):
        top = row * (8 + GAP)
        assert (several[top : top + 8] == drawn(f"preview.guidance={scale}")).all()
