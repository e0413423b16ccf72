from dataclasses import replace

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.rules import check
from bigdiff.config.schema import Batch, Preview

STAGE = load_stage("512px")


def test_a_good_stage_passes_unchanged() -> None:
    assert check(STAGE) is STAGE


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("steps=0", "steps=0 must be positive"),
        ("batch.micro=0", "batch.micro=0 must be positive"),
        ("log.every=-1", "log.every=-1 must be positive"),
        ("text_dropout=1.0", "text_dropout=1.0 must lie in"),
        ("text_dropout=-0.1", "text_dropout=-0.1 must lie in"),
        ("resolution=100", "resolution=100 does not divide"),
        ("model.unet.block_out_channels=[320,640]", "must have the same length"),
        ("optim.warmup_steps=194000", "never ends"),
        ("optim.decay_start=0.5", "no effect with optim.schedule=constant"),
        ("optim.decay_start=1.5", "must lie in"),
        ("ema.decay=1.0", "ema.decay=1.0 must lie in"),
        ("preview.every=10", "preview.prompts is empty"),
        ("preview.prompts=[a]", "no effect with preview.every=0"),
        ("init_from=512px", "is the stage itself"),
        ("data.latents=", "set either data.latents or data.sources"),
        ("data.sources=[{latents: x}]", "set either data.latents or data.sources"),
        ("data.canonical_nodes=3", "data.canonical_nodes=3 does not divide batch.total=2048"),
        ("data.damage_budget=1.0", "must lie in [0, 1)"),
        ("data.latents=s3://bucket/set", "s3://bucket/set is remote: data.cache must name a folder"),
        ("data.cache=/scratch", "data.cache has no effect without a remote set"),
        ("data.cache_gb=5", "data.cache and data.cache_gb go together"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(argument: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=r"^stage 512px: ") as caught:
        load_stage("512px", [argument])
    assert sentence in str(caught.value)


def test_values_that_belong_together_pass_together() -> None:
    assert load_stage("512px", ["optim.schedule=cosine", "optim.decay_start=0.5"]).optim.decay_start == 0.5
    assert (
        check(replace(STAGE, preview=Preview(every=10, prompts=("a",)), batch=Batch(total=128, micro=64))).batch.total
        == 128
    )


def test_latents_are_pixels_over_the_factor() -> None:
    assert STAGE.latent_size == 64
    assert load_stage("256px").latent_size == 32
