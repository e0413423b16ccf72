"""Whether a stage's values fit each other: every setting that cannot work, or would have no effect, is refused."""

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage, sources


def check(stage: Stage) -> Stage:
    """Return `stage` when its values fit each other.

    Raises:
        UsageError: naming the first key that cannot work or would have no effect.
    """
    for wrong, sentence in _rules(stage):
        if wrong:
            raise UsageError(f"stage {stage.name}: {sentence}")
    return stage


def _rules(stage: Stage) -> list[tuple[bool, str]]:
    optim, unet = stage.optim, stage.model.unet
    positive = {
        "steps": stage.steps,
        "resolution": stage.resolution,
        "batch.total": stage.batch.total,
        "batch.micro": stage.batch.micro,
        "data.window": stage.data.window,
        "data.canonical_nodes": stage.data.canonical_nodes,
        "data.read_ahead": stage.data.read_ahead,
        "data.read_threads": stage.data.read_threads,
        "checkpoint.every": stage.checkpoint.every,
        "checkpoint.keep": stage.checkpoint.keep,
        "log.every": stage.log.every,
    }
    decays = optim.schedule != "constant"
    return [
        *[(value <= 0, f"{key}={value} must be positive") for key, value in positive.items()],
        *_data_rules(stage),
        (not 0 <= stage.text_dropout < 1, f"text_dropout={stage.text_dropout} must lie in [0, 1)"),
        (
            stage.resolution % (stage.model.vae.factor * 2 ** (len(unet.block_out_channels) - 1)) != 0,
            f"resolution={stage.resolution} does not divide by the VAE's factor {stage.model.vae.factor} times the "
            f"UNet's {2 ** (len(unet.block_out_channels) - 1)}",
        ),
        (
            not len(unet.block_out_channels) == len(unet.down_block_types) == len(unet.up_block_types),
            "model.unet block_out_channels, down_block_types and up_block_types must have the same length",
        ),
        (
            optim.warmup_steps >= stage.steps,
            f"optim.warmup_steps={optim.warmup_steps} never ends in {stage.steps} steps",
        ),
        (not 0 <= optim.decay_start < 1, f"optim.decay_start={optim.decay_start} must lie in [0, 1)"),
        (not decays and optim.decay_start > 0, "optim.decay_start has no effect with optim.schedule=constant"),
        (not 0 < stage.ema.decay < 1, f"ema.decay={stage.ema.decay} must lie in (0, 1)"),
        (stage.preview.every > 0 and not stage.preview.prompts, "preview.every is set but preview.prompts is empty"),
        (
            stage.preview.every == 0 and bool(stage.preview.prompts),
            "preview.prompts have no effect with preview.every=0",
        ),
        (stage.init_from == stage.name, f"init_from={stage.init_from} is the stage itself"),
    ]


def _data_rules(stage: Stage) -> list[tuple[bool, str]]:
    data = stage.data
    remote = [one.latents for one in sources(data) if "://" in one.latents]
    return [
        (bool(data.latents) == bool(data.sources), "set either data.latents or data.sources"),
        (
            stage.batch.total % max(data.canonical_nodes, 1) != 0,
            f"data.canonical_nodes={data.canonical_nodes} does not divide batch.total={stage.batch.total}: "
            f"take a divisor, 1 on a single machine",
        ),
        (not 0 <= data.damage_budget < 1, f"data.damage_budget={data.damage_budget} must lie in [0, 1)"),
        (bool(remote) and not data.cache, f"{(remote or [''])[0]} is remote: data.cache must name a folder for it"),
        (bool(data.cache) and not remote, "data.cache has no effect without a remote set"),
        ((data.cache_gb > 0) != bool(data.cache), "data.cache and data.cache_gb go together"),
    ]
