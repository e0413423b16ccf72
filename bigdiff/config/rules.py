"""Whether a stage's values fit each other: every setting that cannot work, or would have no effect, is refused."""

import math

from bigdiff.config import averages
from bigdiff.config.autoencoder_rules import autoencoder_rules
from bigdiff.config.engine_rules import engine_rules, recovery_rules, speed_rules
from bigdiff.config.errors import UsageError
from bigdiff.config.network_rules import data_rules, network_rules
from bigdiff.config.schema import Diffusion, Stage, sources


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
    optim, autoencoder = stage.optim, stage.model.autoencoder
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
        "checkpoint.wait_seconds": stage.checkpoint.wait_seconds,
        "log.every": stage.log.every,
    }
    decays = optim.schedule != "constant"
    return [
        *[(value <= 0, f"{key}={value} must be positive") for key, value in positive.items()],
        (
            not 0 <= stage.log.price_per_device_hour < math.inf,
            f"log.price_per_device_hour={stage.log.price_per_device_hour} must not be negative; 0 is no price",
        ),
        *data_rules(stage),
        *_checkpoint_rules(stage),
        *_diffusion_rules(stage.diffusion),
        (
            stage.diffusion.timestep_draws == "stratified" and stage.batch.total == 1,
            "diffusion.timestep_draws=stratified has no effect with batch.total=1",
        ),
        *(autoencoder_rules(stage, autoencoder) if autoencoder else network_rules(stage)),
        (
            optim.warmup_steps >= stage.steps and not stage.init_schedule,
            f"optim.warmup_steps={optim.warmup_steps} never ends in {stage.steps} steps",
        ),
        (not 0 <= optim.decay_start < 1, f"optim.decay_start={optim.decay_start} must lie in [0, 1)"),
        (not decays and optim.decay_start > 0, "optim.decay_start has no effect with optim.schedule=constant"),
        *_cycle_rules(stage),
        *_start_rules(stage),
        *_ema_rules(stage),
        *_validation_rules(stage),
        *engine_rules(stage),
        *speed_rules(stage),
        *recovery_rules(stage),
    ]


def _checkpoint_rules(stage: Stage) -> list[tuple[bool, str]]:
    every, kept = stage.checkpoint.every, stage.checkpoint.keep_every
    return [
        (kept < 0, f"checkpoint.keep_every={kept} must not be negative; 0 keeps none for ever"),
        (
            kept > 0 and kept % max(every, 1) != 0,
            f"checkpoint.keep_every={kept} must be a multiple of checkpoint.every={every}",
        ),
        (kept > stage.steps, f"checkpoint.keep_every={kept} is never reached in {stage.steps} steps"),
    ]


def _cycle_rules(stage: Stage) -> list[tuple[bool, str]]:
    """Of the decay in SD v1's launch scripts."""
    optim = stage.optim
    cyclic, decay = optim.schedule == "ldm_linear", round(stage.steps * (1 - optim.decay_start))
    return [
        (
            not cyclic and optim.cycle_steps != 0,
            f"optim.cycle_steps has no effect with optim.schedule={optim.schedule}",
        ),
        (
            cyclic and optim.cycle_steps < decay,
            f"optim.cycle_steps={optim.cycle_steps} must be at least the {decay} steps of the decay, so that the rate "
            f"never exceeds optim.lr",
        ),
    ]


def _ema_rules(stage: Stage) -> list[tuple[bool, str]]:
    """Of the averages and of what is made of them."""
    ema, drawn = stage.ema, stage.preview.weights
    known = (averages.DEFAULT, averages.RAW, *averages.names(ema))
    asked = averages.several(drawn)
    held = [averages.held(one, averages.names(ema), stage.name) for one in asked if one in known]
    unknown = next((one for one in asked if one not in known), "")
    wide = next((width for width in ema.power if not 0 < width < averages.WIDEST), None)
    fast = next((decay for decay in ema.decays if not 0 < decay < 1), None)
    return [
        (fast is not None, f"ema.decays: {fast} must lie in (0, 1)"),
        (len(set(ema.decays)) < len(ema.decays), f"ema.decays={ema.decays} names a decay twice"),
        (wide is not None, f"ema.power: {wide} must lie in (0, {averages.WIDEST:.4f}), a profile's relative width"),
        (len(set(ema.power)) < len(ema.power), f"ema.power={ema.power} names a width twice"),
        (ema.snapshot_every < 0, f"ema.snapshot_every={ema.snapshot_every} must not be negative"),
        (ema.snapshot_every > 0 and not ema.power, "ema.snapshot_every has no effect without ema.power"),
        (
            bool(ema.power) and ema.snapshot_every == 0,
            "ema.power without ema.snapshot_every stores nothing to make other widths of: set it, in steps",
        ),
        (
            ema.snapshot_every > stage.steps,
            f"ema.snapshot_every={ema.snapshot_every} is never reached in {stage.steps} steps",
        ),
        (len(held) < len(asked), f"preview.weights={unknown} is not tracked: take one of {', '.join(known)}"),
        (len(set(held)) < len(held), f"preview.weights={drawn} draws the same weights twice: remove one"),
        (
            drawn != averages.DEFAULT and stage.preview.every == 0,
            "preview.weights has no effect with preview.every=0",
        ),
    ]


def _validation_rules(stage: Stage) -> list[tuple[bool, str]]:
    """Of the held-out set."""
    found = stage.validation
    on = bool(found.set)
    return [
        (
            not on and (found.every != 0 or found.samples != 0),
            "validation.every and validation.samples have no effect without validation.set",
        ),
        (on and found.set in [one.location for one in sources(stage.data)], f"{found.set} is trained on, too"),
        (
            on and (found.every <= 0 or found.every % max(stage.log.every, 1) != 0),
            f"validation.every={found.every} must be a positive multiple of log.every={stage.log.every}, with whose "
            f"figures it is written",
        ),
        (
            on and (found.samples <= 0 or found.samples % max(stage.batch.total, 1) != 0),
            f"validation.samples={found.samples} must be a positive multiple of batch.total={stage.batch.total}",
        ),
    ]


def _start_rules(stage: Stage) -> list[tuple[bool, str]]:
    """Of what a stage starts from."""
    choices = {
        "init_step": stage.init_step != 0,
        "init_weights": stage.init_weights != "ema",
        "init_ema": stage.init_ema,
        "init_optimizer": stage.init_optimizer,
        "init_schedule": stage.init_schedule,
    }
    flat = stage.optim.warmup_steps == 0 and stage.optim.schedule == "constant"
    return [
        (stage.init_from == stage.name, f"init_from={stage.init_from} is the stage itself"),
        (
            stage.init_weights not in (averages.RAW, averages.DEFAULT)
            and not stage.init_weights.startswith(("ema/", "power/")),
            f"init_weights={stage.init_weights} is none of raw, ema, ema/DECAY, power/WIDTH",
        ),
        (stage.init_step < 0, f"init_step={stage.init_step} must not be negative; 0 is that run's end"),
        *[
            (chosen and not stage.init_from, f"{key} has no effect without init_from")
            for key, chosen in choices.items()
        ],
        (
            bool(stage.init_unet and stage.init_from),
            f"init_unet={stage.init_unet} has no effect with init_from={stage.init_from}, whose UNet is taken",
        ),
        (stage.init_schedule and flat, "init_schedule has no effect on a constant rate with optim.warmup_steps=0"),
    ]


def _diffusion_rules(diffusion: Diffusion) -> list[tuple[bool, str]]:
    law = diffusion.timesteps
    return [
        (diffusion.train_timesteps < 2, f"diffusion.train_timesteps={diffusion.train_timesteps} must be at least 2"),
        (
            not 0 < diffusion.beta_start <= diffusion.beta_end < 1,
            f"diffusion.beta_start={diffusion.beta_start} and diffusion.beta_end={diffusion.beta_end} must lie "
            f"in (0, 1), in this order",
        ),
        (
            diffusion.zero_terminal_snr and diffusion.prediction_type == "epsilon",
            "diffusion.zero_terminal_snr cannot go with diffusion.prediction_type=epsilon: at the last timestep the "
            "input is the noise itself, so that predicting it teaches nothing and no sampler finds a picture in it; "
            "take v_prediction or sample",
        ),
        *_weighting_rules(diffusion),
        (diffusion.offset_noise < 0, f"diffusion.offset_noise={diffusion.offset_noise} must not be negative"),
        (
            diffusion.input_perturbation < 0,
            f"diffusion.input_perturbation={diffusion.input_perturbation} must not be negative",
        ),
        (
            law == "logit_normal" and diffusion.logit_std <= 0,
            f"diffusion.timesteps=logit_normal needs diffusion.logit_std above 0, not {diffusion.logit_std}; 1 in "
            f"Esser et al. 2024",
        ),
        (
            law != "logit_normal" and (diffusion.logit_mean != 0 or diffusion.logit_std != 0),
            f"diffusion.logit_mean and diffusion.logit_std have no effect with diffusion.timesteps={law}",
        ),
    ]


def _weighting_rules(diffusion: Diffusion) -> list[tuple[bool, str]]:
    """Each weighting's settings are needed with it, and have no effect with another."""
    settings = [
        ("min_snr", "snr_gamma", diffusion.snr_gamma),
        ("p2", "p2_gamma", diffusion.p2_gamma),
        ("p2", "p2_k", diffusion.p2_k),
        ("edm", "sigma_data", diffusion.sigma_data),
    ]
    chosen = diffusion.weighting
    return [
        *[
            (chosen == owner and value <= 0, f"diffusion.weighting={owner} needs diffusion.{key} above 0, not {value}")
            for owner, key, value in settings
        ],
        *[
            (chosen != owner and value != 0, f"diffusion.{key} has no effect with diffusion.weighting={chosen}")
            for owner, key, value in settings
        ],
    ]
