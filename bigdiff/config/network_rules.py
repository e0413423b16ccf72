"""Whether a stage's networks, data and previews fit each other: with and without text, on latents and on pictures."""

import math

from bigdiff.config.schema import Data, Preview, Source, Stage, on_images, sources

Rules = list[tuple[bool, str]]


def network_rules(stage: Stage) -> Rules:
    """(wrong, sentence) of the networks, of what they are trained on, and of what is drawn."""
    unet, vae, text = stage.model.unet, stage.model.vae, stage.model.text
    least = divisor(stage)
    return [
        *_size_rules(stage),
        (
            stage.resolution % least != 0,
            f"resolution={stage.resolution} does not divide by {least}: the VAE's factor {vae.factor if vae else 1} "
            f"times the UNet's {least // max(vae.factor if vae else 1, 1)}",
        ),
        (
            not len(unet.block_out_channels) == len(unet.down_block_types) == len(unet.up_block_types),
            "model.unet block_out_channels, down_block_types and up_block_types must have the same length",
        ),
        *(_text_rules(stage) if text else _textless_rules(stage)),
        (
            vae is None and unet.latent_channels not in (1, 3),
            f"model.unet.latent_channels={unet.latent_channels} must be 3, or 1 for grey, without model.vae",
        ),
        (
            vae is None and not on_images(stage.data),
            "data.latents were made with a VAE, and there is no model.vae: set it, or train on data.images",
        ),
        (not all(stage.model.frozen), "model.frozen has an empty pattern, which matches nothing"),
        *_preview_rules(stage),
    ]


def divisor(stage: Stage) -> int:
    """What the sides of a stage's pictures must divide by, in pixels: the VAE's factor times the UNet's."""
    levels, vae = max(len(stage.model.unet.block_out_channels), 1), stage.model.vae
    return (max(vae.factor, 1) if vae else 1) << levels - 1


def _size_rules(stage: Stage) -> Rules:
    unet, vae, text = stage.model.unet, stage.model.vae, stage.model.text
    positive = {
        "model.unet.latent_channels": unet.latent_channels,
        "model.unet.layers_per_block": unet.layers_per_block,
        "model.unet.attention_head_dim": unet.attention_head_dim,
        "model.unet.norm_num_groups": unet.norm_num_groups,
        "model.vae.factor": vae.factor if vae else 1,
        "model.text.max_length": text.max_length if text else 1,
    }
    return [
        (not unet.block_out_channels, "model.unet.block_out_channels is empty: name the channels of each level"),
        *[(value <= 0, f"{key}={value} must be positive") for key, value in positive.items()],
    ]


def _text_rules(stage: Stage) -> Rules:
    return [
        (not 0 <= stage.text_dropout < 1, f"text_dropout={stage.text_dropout} must lie in [0, 1)"),
        (
            stage.model.unet.cross_attention_dim == 0,
            "model.unet.cross_attention_dim=0 is a UNet without text, but model.text is set: set model.text=null, or "
            "the width of its states",
        ),
        (stage.model.vae is None, "model.text is set but model.vae is not: text to image is trained on latents"),
        (stage.preview.count != 0, "preview.count has no effect with model.text: preview.prompts says what is drawn"),
        (
            stage.preview.every > 0 and not stage.preview.prompts,
            "preview.every is set but preview.prompts is empty",
        ),
    ]


def _textless_rules(stage: Stage) -> Rules:
    unet, preview = stage.model.unet, stage.preview
    crossing = [kind for kind in (*unet.down_block_types, *unet.up_block_types) if "Cross" in kind]
    return [
        (
            unet.cross_attention_dim != 0,
            f"model.unet.cross_attention_dim={unet.cross_attention_dim} has no effect without model.text: set "
            f"model.text, or cross_attention_dim=0 and blocks such as DownBlock2D and AttnDownBlock2D",
        ),
        (bool(crossing), f"model.unet: {(crossing or [''])[0]} looks at text, and there is no model.text"),
        (stage.text_dropout != 0, f"text_dropout={stage.text_dropout} has no effect without model.text: set it to 0"),
        (bool(preview.prompts), "preview.prompts have no effect without model.text: preview.count says how many"),
        (
            preview.guidance != Preview().guidance,
            f"preview.guidance={preview.guidance} has no effect without model.text: leave it out",
        ),
        (bool(preview.more_guidance), "preview.more_guidance has no effect without model.text: leave it out"),
        (preview.every > 0 and preview.count <= 0, "preview.every is set but preview.count is 0"),
    ]


def _preview_rules(stage: Stage) -> Rules:
    preview, most = stage.preview, stage.diffusion.train_timesteps
    scales = (preview.guidance, *preview.more_guidance)
    twice = next((one for one in scales if scales.count(one) > 1), None)
    return [
        (twice is not None, f"preview.more_guidance: {twice} is drawn already, remove one"),
        (
            preview.every == 0 and bool(preview.more_guidance),
            "preview.more_guidance has no effect with preview.every=0",
        ),
        (preview.every < 0, f"preview.every={preview.every} must not be negative; 0 draws none"),
        (
            preview.every > 0 and not 1 <= preview.steps <= most,
            f"preview.steps={preview.steps} must lie between 1 and the {most} of diffusion.train_timesteps",
        ),
        (preview.every == 0 and bool(preview.prompts), "preview.prompts have no effect with preview.every=0"),
        (preview.every == 0 and preview.count != 0, "preview.count has no effect with preview.every=0"),
    ]


def data_rules(stage: Stage) -> Rules:
    """(wrong, sentence) of where the samples come from and what is done to them."""
    data = stage.data
    given = sources(data)
    remote = [one.location for one in given if "://" in one.location]
    return [
        (
            sum(map(bool, (data.latents, data.images, data.sources))) != 1,
            "set one of data.latents, data.images and data.sources",
        ),
        *[(not _one_set(one), f"data.sources {number}: {_named(one)}") for number, one in enumerate(given, 1)],
        (
            len({bool(one.images) for one in given}) > 1,
            "data.sources are of two kinds: they must all be latents, or all images",
        ),
        (not 0 <= data.flip <= 1, f"data.flip={data.flip} must lie in [0, 1]"),
        (
            data.buckets and data.crop != "center",
            f"data.crop={data.crop} has no effect with data.buckets, whose pictures have their bucket's shape",
        ),
        (
            stage.batch.total % max(data.canonical_nodes, 1) != 0,
            f"data.canonical_nodes={data.canonical_nodes} does not divide batch.total={stage.batch.total}: "
            f"take a divisor, 1 on a single machine",
        ),
        (not 0 <= data.damage_budget < 1, f"data.damage_budget={data.damage_budget} must lie in [0, 1)"),
        (bool(remote) and not data.cache, f"{(remote or [''])[0]} is remote: data.cache must name a folder for it"),
        (bool(data.cache) and not remote, "data.cache has no effect without a remote set"),
        (
            not 0 <= data.disk_ahead_gb < math.inf,
            f"data.disk_ahead_gb={data.disk_ahead_gb} must not be negative; 0 asks for nothing",
        ),
        (
            data.disk_ahead_gb != Data().disk_ahead_gb and len(remote) == len(given),
            f"data.disk_ahead_gb={data.disk_ahead_gb} has no effect without a set in a folder: leave it out",
        ),
        (
            not 0 <= data.memory_gb < math.inf,
            f"data.memory_gb={data.memory_gb} must not be negative; 0 keeps nothing in memory",
        ),
        (
            0 < data.memory_gb < 1e-6,
            f"data.memory_gb={data.memory_gb} is less than a kilobyte: give more, or 0 to keep nothing in memory",
        ),
        (
            data.memory_gb != 0 and on_images(data),
            f"data.memory_gb={data.memory_gb} has no effect on pictures, which are decoded anew: leave it out",
        ),
        (data.cache_gb < 0 or (data.cache_gb > 0) != bool(data.cache), "data.cache and data.cache_gb go together"),
    ]


def _one_set(source: Source) -> bool:
    return bool(source.latents) != bool(source.images)


def _named(source: Source) -> str:
    return f"set either latents or images, not {'both' if source.latents else 'neither'}"
