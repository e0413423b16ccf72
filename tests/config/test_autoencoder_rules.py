import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage


def test_the_published_stage_passes() -> None:
    config = load_stage("kl-f8").model.autoencoder
    assert config is not None
    assert config.factor == 8
    assert load_stage("kl-f8", ["model.autoencoder.disc_weight=0", "model.autoencoder.disc_start=50001"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["model.vae={source: x}"], "model.vae has no effect in a stage with model.autoencoder"),
        (["init_unet=sd.ckpt"], "init_unet has no effect in a stage with model.autoencoder"),
        (["model.text={encoder: x, tokenizer: x}"], "model.text has no effect in a stage with model.autoencoder"),
        (["model.unet.layers_per_block=1"], "model.unet has no effect in a stage with model.autoencoder"),
        (["diffusion.prediction_type=sample"], "diffusion has no effect in a stage with model.autoencoder"),
        (["text_dropout=0.1"], "text_dropout=0.1 has no effect without text"),
        (["speed.channels_last=true"], "speed has no effect with model.autoencoder"),
        (["engine.gradient_checkpointing=auto"], "gradient_checkpointing=auto is of a UNet's blocks"),
        (["data.buckets=true", "data.crop=center"], "data.buckets is for stages of diffusion"),
        (["data.images=", "data.latents=x", "data.crop=center"], "an autoencoder is trained on pictures"),
        (["model.autoencoder.latent_channels=0"], "latent_channels=0 must be positive"),
        (["model.autoencoder.norm_num_groups=0"], "norm_num_groups=0 must be positive"),
        (["model.autoencoder.norm_num_groups=48"], "norm_num_groups=48 does not divide each of"),
        (["model.autoencoder.block_out_channels=[]"], "block_out_channels is empty"),
        (["resolution=100"], "resolution=100 does not divide by 8"),
        (["model.autoencoder.kl_weight=-1"], "kl_weight=-1.0 must not be negative"),
        (["model.autoencoder.disc_weight=-1"], "disc_weight=-1.0 must not be negative"),
        (["model.autoencoder.perceptual_vgg="], "vgg16-397923af.pth"),
        (["model.autoencoder.perceptual_weight=0"], "have no effect with perceptual_weight=0"),
        (["resolution=8"], "resolution=8 is less than the 16 pixels"),
        (["resolution=16"], "resolution=16 is less than the 24 pixels that a discriminator"),
        (["model.autoencoder.disc_weight=0", "model.autoencoder.disc_start=5"], "disc_start has no effect"),
        (["model.autoencoder.disc_weight=0", "model.autoencoder.disc_channels=5"], "disc_channels has no effect"),
        (["model.autoencoder.disc_weight=0", "model.autoencoder.disc_layers=5"], "disc_layers has no effect"),
        (["model.autoencoder.disc_start=246803"], "disc_start=246803 is never reached in 246803 steps"),
        (["model.autoencoder.disc_start=-1"], "disc_start=-1 must not be negative"),
        (["model.autoencoder.disc_layers=0"], "disc_layers=0 must be positive"),
        (["model.autoencoder.disc_channels=0"], "disc_channels=0 must be positive"),
        (["preview.prompts=[a]"], "preview.prompts have no effect with model.autoencoder"),
        (["preview.more_guidance=[1.0]"], "preview.more_guidance has no effect with model.autoencoder"),
        (["preview.guidance=1.0"], "preview.guidance has no effect with model.autoencoder"),
        (["preview.steps=5"], "preview.steps has no effect with model.autoencoder"),
        (["preview.count=0"], "preview.count is 0"),
        (["preview.every=0"], "preview.count has no effect with preview.every=0"),
        (["preview.every=-1"], "preview.every=-1 must not be negative"),
        (["steps=0"], "steps=0 must be positive"),  # the rules of every stage hold, too
    ],
)
def test_what_cannot_work_or_has_no_effect_is_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_stage("kl-f8", arguments)
    assert sentence in str(raised.value)
