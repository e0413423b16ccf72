"""Whether the settings of a stage that trains an autoencoder fit each other."""

from bigdiff.config.schema import Autoencoder, Diffusion, Preview, Stage, UNet, on_images

Rules = list[tuple[bool, str]]
_VGG_LEAST = 16  # pixels: VGG16's features are halved four times


def autoencoder_rules(stage: Stage, config: Autoencoder) -> Rules:
    """(wrong, sentence) of the autoencoder `config`, and of what has no effect where one is trained."""
    channels = config.block_out_channels
    weights = {"kl_weight": config.kl_weight, "perceptual_weight": config.perceptual_weight}
    weights |= {"disc_weight": config.disc_weight}
    sizes = {"latent_channels": config.latent_channels, "layers_per_block": config.layers_per_block}
    sizes |= {"norm_num_groups": config.norm_num_groups}
    return [
        *_without_effect(stage),
        (not on_images(stage.data), "an autoencoder is trained on pictures: set data.images instead of data.latents"),
        *[(size <= 0, f"model.autoencoder.{key}={size} must be positive") for key, size in sizes.items()],
        (not channels, "model.autoencoder.block_out_channels is empty: give the channels of each level"),
        (
            any(wide % max(config.norm_num_groups, 1) for wide in channels),
            f"model.autoencoder.norm_num_groups={config.norm_num_groups} does not divide each of "
            f"block_out_channels={list(channels)}",
        ),
        (
            bool(channels) and stage.resolution % config.factor != 0,
            f"resolution={stage.resolution} does not divide by {config.factor}, the factor of model.autoencoder's "
            f"{len(channels)} levels",
        ),
        *[(one < 0, f"model.autoencoder.{key}={one} must not be negative") for key, one in weights.items()],
        *_perceptual_rules(stage, config),
        *_discriminator_rules(stage, config),
        *_preview_rules(stage.preview),
    ]


def _without_effect(stage: Stage) -> Rules:
    """Settings of diffusion."""
    makes = "has no effect in a stage with model.autoencoder, which is trained instead"
    return [
        (stage.model.vae is not None, f"model.vae {makes}: name the exported autoencoder in a later stage"),
        (stage.model.text is not None, f"model.text {makes}"),
        (stage.model.unet != UNet(), f"model.unet {makes}"),
        (bool(stage.init_unet), f"init_unet {makes}"),
        (stage.diffusion != Diffusion(), f"diffusion {makes}: leave its settings out"),
        (stage.text_dropout != 0, f"text_dropout={stage.text_dropout} has no effect without text: set it to 0"),
        (stage.data.buckets, "data.buckets is for stages of diffusion: an autoencoder is trained on squares"),
    ]


def _perceptual_rules(stage: Stage, config: Autoencoder) -> Rules:
    on = config.perceptual_weight > 0
    return [
        (
            on and not config.perceptual_vgg,
            "model.autoencoder.perceptual_weight needs perceptual_vgg, the file of torchvision's VGG16 weights "
            "(vgg16-397923af.pth, which torchvision.models.vgg16(weights='IMAGENET1K_V1') fetches); "
            "perceptual_weight=0 does without",
        ),
        (
            not on and bool(config.perceptual_vgg or config.perceptual_heads),
            "model.autoencoder.perceptual_vgg and perceptual_heads have no effect with perceptual_weight=0",
        ),
        (
            on and stage.resolution < _VGG_LEAST,
            f"resolution={stage.resolution} is less than the {_VGG_LEAST} pixels that model.autoencoder's "
            f"perceptual_weight needs",
        ),
    ]


def _discriminator_rules(stage: Stage, config: Autoencoder) -> Rules:
    on, usual = config.disc_weight > 0, Autoencoder()
    settings = {
        "disc_start": config.disc_start != usual.disc_start,
        "disc_channels": config.disc_channels != usual.disc_channels,
        "disc_layers": config.disc_layers != usual.disc_layers,
    }
    least = 3 * 2**config.disc_layers if config.disc_layers > 0 else 0
    return [
        *[
            (set_ and not on, f"model.autoencoder.{key} has no effect with disc_weight=0")
            for key, set_ in settings.items()
        ],
        (on and config.disc_channels <= 0, f"model.autoencoder.disc_channels={config.disc_channels} must be positive"),
        (on and config.disc_layers <= 0, f"model.autoencoder.disc_layers={config.disc_layers} must be positive"),
        (on and config.disc_start < 0, f"model.autoencoder.disc_start={config.disc_start} must not be negative"),
        (
            on and config.disc_start >= stage.steps,
            f"model.autoencoder.disc_start={config.disc_start} is never reached in {stage.steps} steps: lower it, or "
            f"set disc_weight=0",
        ),
        (
            on and stage.resolution < least,
            f"resolution={stage.resolution} is less than the {least} pixels that a discriminator of "
            f"model.autoencoder.disc_layers={config.disc_layers} needs",
        ),
    ]


def _preview_rules(preview: Preview) -> Rules:
    usual = Preview()
    return [
        (bool(preview.prompts), "preview.prompts have no effect with model.autoencoder: preview.count says how many"),
        (preview.guidance != usual.guidance, "preview.guidance has no effect with model.autoencoder: leave it out"),
        (bool(preview.more_guidance), "preview.more_guidance has no effect with model.autoencoder: leave it out"),
        (preview.steps != usual.steps, "preview.steps has no effect with model.autoencoder: leave it out"),
        (preview.every < 0, f"preview.every={preview.every} must not be negative; 0 draws none"),
        (preview.every > 0 and preview.count <= 0, "preview.every is set but preview.count is 0"),
        (preview.every == 0 and preview.count != 0, "preview.count has no effect with preview.every=0"),
    ]
