"""What networks, data and previews refuse of each other, each sentence from a stage in which nothing else is wrong."""

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage

TEXT: list[str] = []  # the stage as it is: text to image on latents
TEXTLESS = [
    "model.text=null",
    "text_dropout=0",
    "model.unet.cross_attention_dim=0",
    "model.unet.down_block_types=[DownBlock2D,DownBlock2D,AttnDownBlock2D,DownBlock2D]",
    "model.unet.up_block_types=[UpBlock2D,AttnUpBlock2D,UpBlock2D,UpBlock2D]",
]
PIXELS = [*TEXTLESS, "model.vae=null", "model.unet.latent_channels=3", "data.latents=", "data.images=set"]
CACHE = "data={cache: /scratch, cache_gb: 0.5}"
PICTURES = ["data.latents=", "data.images=set"]
CROSSING = "model.unet.up_block_types=[UpBlock2D,CrossAttnUpBlock2D,UpBlock2D,UpBlock2D]"


@pytest.mark.parametrize(
    "options",
    [
        TEXT,
        [*TEXT, *PICTURES, "data.crop=random", "data.flip=1", "text_dropout=0"],
        [*TEXT, "data.crop=random", "data.flip=0.5"],
        [*TEXT, "data={sources: [{latents: a}, {latents: 's3://bucket/b'}], latents: '', disk_ahead_gb: 0}", CACHE],
        [*TEXT, "data.buckets=true", "data.flip=0.5"],
        [*TEXT, "preview={every: 5, prompts: [a], guidance: 1.5, steps: 1000}"],
        [*TEXT, "data={latents: '', sources: [{images: a}, {images: b}], flip: 0.5}"],
        [*TEXT, "data={latents: 's3://bucket/set', cache: /scratch, cache_gb: 0.5}", "model.frozen=[unet.*]"],
        TEXTLESS,
        [*TEXTLESS, *PICTURES, "preview={every: 5, count: 2}"],
        PIXELS,
        [*PIXELS, "model.unet.latent_channels=1", "resolution=8"],  # 8 = 2^3 for four levels, without a VAE
    ],
)
def test_what_fits_together_passes(options: list[str]) -> None:
    assert load_stage("512px", options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["resolution=96"], "resolution=96 does not divide by 64: the VAE's factor 8 times the UNet's 8"),
        ([*PIXELS, "resolution=12"], "resolution=12 does not divide by 8: the VAE's factor 1 times the UNet's 8"),
        (["model.unet.block_out_channels=[320,640]"], "down_block_types and up_block_types must have the same length"),
        ([*TEXTLESS, "model.unet.up_block_types=[UpBlock2D]"], "must have the same length"),
        (["model.unet.block_out_channels=[]"], "model.unet.block_out_channels is empty"),
        (["model.unet.latent_channels=0"], "model.unet.latent_channels=0 must be positive"),
        (["model.unet.layers_per_block=0"], "model.unet.layers_per_block=0 must be positive"),
        (["model.unet.attention_head_dim=-8"], "model.unet.attention_head_dim=-8 must be positive"),
        (["model.unet.norm_num_groups=0"], "model.unet.norm_num_groups=0 must be positive"),
        (["model.vae.factor=0"], "model.vae.factor=0 must be positive"),
        (["model.text.max_length=0"], "model.text.max_length=0 must be positive"),
        (["model.frozen=[unet.conv_in.*,'']"], "model.frozen has an empty pattern, which matches nothing"),
        ([*PIXELS, "model.unet.latent_channels=4"], "model.unet.latent_channels=4 must be 3, or 1 for grey"),
        ([*PIXELS, "data={latents: set, images: ''}"], "data.latents were made with a VAE, and there is no model.vae"),
    ],
)
def test_networks_that_cannot_be_are_refused(options: list[str], sentence: str) -> None:
    assert sentence in refusal(options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["text_dropout=1.0"], "text_dropout=1.0 must lie in [0, 1)"),
        (["text_dropout=-0.1"], "text_dropout=-0.1 must lie in [0, 1)"),
        (["model.unet.cross_attention_dim=0"], "is a UNet without text, but model.text is set: set model.text=null"),
        (["model.vae=null", "model.unet.latent_channels=3", *PICTURES], "model.text is set but model.vae is not"),
        (["preview={every: 5, prompts: [a], count: 2}"], "preview.count has no effect with model.text"),
        (["preview.every=10"], "preview.every is set but preview.prompts is empty"),
        ([*TEXTLESS, "model.unet.cross_attention_dim=768"], "cross_attention_dim=768 has no effect without model.text"),
        ([*TEXTLESS, CROSSING], "model.unet: CrossAttnUpBlock2D looks at text, and there is no model.text"),
        ([*TEXTLESS, "text_dropout=0.1"], "text_dropout=0.1 has no effect without model.text: set it to 0"),
        (
            [*TEXTLESS, "preview={every: 5, prompts: [a], count: 2}"],
            "preview.prompts have no effect without model.text",
        ),
        ([*TEXTLESS, "preview={every: 5, more_guidance: [5.0], count: 2}"], "more_guidance has no effect without"),
        (["preview={every: 5, prompts: [a], more_guidance: [1, 3]}"], "preview.more_guidance: 3.0 is drawn already"),
        (["preview.more_guidance=[1]"], "preview.more_guidance has no effect with preview.every=0"),
        ([*TEXTLESS, "preview={every: 5, guidance: 5.0, count: 2}"], "preview.guidance=5.0 has no effect without"),
        ([*TEXTLESS, "preview.every=5"], "preview.every is set but preview.count is 0"),
        (["preview.prompts=[a]"], "preview.prompts have no effect with preview.every=0"),
        ([*TEXTLESS, "preview.count=2"], "preview.count has no effect with preview.every=0"),
        (["preview={every: -5, prompts: [a]}"], "preview.every=-5 must not be negative; 0 draws none"),
        (["preview={every: 5, prompts: [a], steps: 0}"], "preview.steps=0 must lie between 1 and the 1000"),
        (["preview={every: 5, prompts: [a], steps: 1001}"], "preview.steps=1001 must lie between 1 and the 1000"),
    ],
)
def test_settings_of_text_and_of_none_are_refused_where_they_are_not(options: list[str], sentence: str) -> None:
    assert sentence in refusal(options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["data.latents="], "set one of data.latents, data.images and data.sources"),
        (["data.images=set"], "set one of data.latents, data.images and data.sources"),
        (["data.sources=[{latents: x}]"], "set one of data.latents, data.images and data.sources"),
        (
            ["data={latents: '', sources: [{latents: a}, {latents: b, images: c}]}"],
            "data.sources 2: set either latents or images, no",
        ),
        (
            ["data={latents: '', sources: [{latents: a}, {upsample: 2.0}]}"],
            "data.sources 2: set either latents or images, not nei",
        ),
        (["data={latents: '', sources: [{latents: a}, {images: b}]}"], "they must all be latents, or all images"),
        ([*PICTURES, "data.flip=1.5"], "data.flip=1.5 must lie in [0, 1]"),
        (["data.buckets=true", "data.crop=random"], "data.crop=random has no effect with data.buckets"),
        (["data.canonical_nodes=3"], "data.canonical_nodes=3 does not divide batch.total=2048"),
        (["data.damage_budget=1.0"], "data.damage_budget=1.0 must lie in [0, 1)"),
        (["data.latents=s3://bucket/set"], "s3://bucket/set is remote: data.cache must name a folder"),
        (
            ["data={latents: '', sources: [{latents: a}, {latents: 'http://host/set'}]}"],
            "http://host/set is remote: data.cache must",
        ),
        (["data.cache=/scratch", "data.cache_gb=5"], "data.cache has no effect without a remote set"),
        (["data.disk_ahead_gb=-1"], "data.disk_ahead_gb=-1.0 must not be negative; 0 asks for nothing"),
        (["data.disk_ahead_gb=.inf"], "data.disk_ahead_gb=inf must not be negative"),
        (
            ["data={latents: 's3://bucket/set', cache: /scratch, cache_gb: 5, disk_ahead_gb: 0}"],
            "data.disk_ahead_gb=0.0 has no effect without a set in a folder",
        ),
        (["data.memory_gb=-1"], "data.memory_gb=-1.0 must not be negative; 0 keeps nothing in memory"),
        (["data.memory_gb=1e-10"], "data.memory_gb=1e-10 is less than a kilobyte: give more, or 0 to keep nothing"),
        (["data.memory_gb=.inf"], "data.memory_gb=inf must not be negative"),
        (["data.memory_gb=.nan"], "data.memory_gb=nan must not be negative"),
        ([*PICTURES, "data.memory_gb=8"], "data.memory_gb=8.0 has no effect on pictures"),
        (["data.cache_gb=5"], "data.cache and data.cache_gb go together"),
        (["data.cache_gb=-5"], "data.cache and data.cache_gb go together"),
        (["data={latents: 's3://bucket/set', cache: /scratch}"], "data.cache and data.cache_gb go together"),
    ],
)
def test_data_that_cannot_be_or_has_no_effect_is_refused(options: list[str], sentence: str) -> None:
    assert sentence in refusal(options)


def refusal(options: list[str]) -> str:
    with pytest.raises(UsageError, match=r"^stage 512px: ") as caught:
        load_stage("512px", options)
    return str(caught.value)
