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
        ("log.price_per_device_hour=-1", "log.price_per_device_hour=-1.0 must not be negative; 0 is no price"),
        ("log.price_per_device_hour=.nan", "log.price_per_device_hour=nan must not be negative"),
        ("checkpoint.wait_seconds=0", "checkpoint.wait_seconds=0 must be positive"),
        ("checkpoint.keep_every=-5000", "checkpoint.keep_every=-5000 must not be negative"),
        ("checkpoint.keep_every=7000", "must be a multiple of checkpoint.every=5000"),
        ("checkpoint.keep_every=200000", "checkpoint.keep_every=200000 is never reached in 194000 steps"),
        ("optim.warmup_steps=194000", "never ends"),
        ("optim.decay_start=0.5", "no effect with optim.schedule=constant"),
        ("optim.decay_start=1.5", "must lie in"),
        ("ema.decays=[0.9,1.0]", "ema.decays: 1.0 must lie in"),
        ("ema.decays=[0.9,0.9]", "names a decay twice"),
        ("ema.power=[0.05,0.29]", "ema.power: 0.29 must lie in (0, 0.2887)"),
        ("ema.power=[0.1,0.1]", "names a width twice"),
        ("ema.power=[0.1]", "ema.power without ema.snapshot_every stores nothing"),
        ("ema.snapshot_every=100", "ema.snapshot_every has no effect without ema.power"),
        ("ema.snapshot_every=-1", "must not be negative"),
        ("ema={power: [0.1], snapshot_every: 194001}", "is never reached in 194000 steps"),
        ("preview.weights=raw", "preview.weights has no effect with preview.every=0"),
        (
            "preview={every: 5, prompts: [a], weights: 'ema,raw,ema/0.9999'}",
            "preview.weights=ema,raw,ema/0.9999 draws the same weights twice",
        ),
        ("preview={every: 5, prompts: [a], weights: 'raw,'}", "preview.weights= is not tracked"),
        (
            "preview={every: 5, prompts: [a], weights: ema/0.5}",
            "preview.weights=ema/0.5 is not tracked: take one of ema, raw",
        ),
        ("init_from=512px", "is the stage itself"),
        ("init_unet=sd.safetensors", "has no effect with init_from=256px, whose UNet is taken"),
        ("init_step=-1", "init_step=-1 must not be negative"),
        ("init_weights=best", "init_weights=best is none of raw, ema"),
        ("init_weights=sigma=0.08", "init_weights=sigma=0.08 is none of raw, ema"),
        ("optim.cycle_steps=300000", "optim.cycle_steps has no effect with optim.schedule=constant"),
        ("optim.schedule=ldm_linear", "optim.cycle_steps=0 must be at least the 194000 steps of the decay"),
        ("recovery.nonfinite_in_a_row=0", "recovery.nonfinite_in_a_row=0 must be positive"),
        ("recovery.spike=3", "recovery.spike=3 would take ordinary steps for spikes: take 6 or more, or 0 for none"),
        ("recovery.spike=-1", "take 6 or more, or 0 for none"),
        ("recovery.window=5", "recovery.window=5 is too short"),
        ("recovery.budget=1", "recovery.budget=1 must lie in [0, 1)"),
        ("diffusion.train_timesteps=1", "diffusion.train_timesteps=1 must be at least 2"),
        ("diffusion.beta_start=0.0", "diffusion.beta_start=0.0 and diffusion.beta_end=0.012 must lie in (0, 1)"),
        ("diffusion.beta_end=0.0001", "in this order"),
        ("diffusion.zero_terminal_snr=true", "cannot go with diffusion.prediction_type=epsilon"),
        ("diffusion.weighting=min_snr", "diffusion.weighting=min_snr needs diffusion.snr_gamma above 0"),
        ("diffusion.weighting=p2", "diffusion.weighting=p2 needs diffusion.p2_gamma above 0"),
        ("diffusion.weighting=edm", "diffusion.weighting=edm needs diffusion.sigma_data above 0"),
        ("diffusion.snr_gamma=5.0", "diffusion.snr_gamma has no effect with diffusion.weighting=constant"),
        ("diffusion.p2_gamma=1.0", "diffusion.p2_gamma has no effect with diffusion.weighting=constant"),
        ("diffusion.p2_k=1.0", "diffusion.p2_k has no effect with diffusion.weighting=constant"),
        ("diffusion.sigma_data=1.0", "diffusion.sigma_data has no effect with diffusion.weighting=constant"),
        ("diffusion.offset_noise=-0.1", "diffusion.offset_noise=-0.1 must not be negative"),
        ("diffusion.input_perturbation=-1.0", "diffusion.input_perturbation=-1.0 must not be negative"),
        ("diffusion.timesteps=logit_normal", "needs diffusion.logit_std above 0, not 0.0"),
        ("diffusion.logit_mean=0.5", "no effect with diffusion.timesteps=uniform"),
        ("diffusion.logit_std=1.0", "no effect with diffusion.timesteps=uniform"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(argument: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=r"^stage 512px: ") as caught:
        load_stage("512px", [argument])
    assert sentence in str(caught.value)


def test_objectives_that_belong_together_pass_together() -> None:
    load_stage("512px", ["diffusion.prediction_type=sample", "diffusion.zero_terminal_snr=true"])
    load_stage("512px", ["diffusion.weighting=p2", "diffusion.p2_gamma=1.0", "diffusion.p2_k=1.0"])
    even = ["diffusion.timesteps=logit_normal", "diffusion.logit_std=1.0", "diffusion.timestep_draws=stratified"]
    assert load_stage("512px", even).diffusion.logit_std == 1.0
    with pytest.raises(UsageError, match=r"snr_gamma has no effect with diffusion\.weighting=edm"):
        load_stage("512px", ["diffusion.weighting=edm", "diffusion.sigma_data=1.0", "diffusion.snr_gamma=5.0"])
    with pytest.raises(UsageError, match=r"stratified has no effect with batch\.total=1"):
        single = ["batch.total=1", "batch.micro=1", "data.canonical_nodes=1"]
        load_stage("512px", ["diffusion.timestep_draws=stratified", *single])


@pytest.mark.parametrize(
    "argument", ["init_step=5", "init_weights=raw", "init_ema=true", "init_optimizer=true", "init_schedule=true"]
)
def test_how_to_start_has_no_effect_without_what_to_start_from(argument: str) -> None:
    assert load_stage("512px", [argument])
    with pytest.raises(UsageError, match=rf"{argument.partition('=')[0]} has no effect without init_from"):
        load_stage("256px", [argument])


def test_a_schedule_that_goes_on_has_something_to_go_on_with() -> None:
    with pytest.raises(UsageError, match="init_schedule has no effect on a constant rate"):
        load_stage("512px", ["init_schedule=true", "optim.warmup_steps=0"])
    short = ["init_schedule=true", "steps=500", "optim.warmup_steps=10000"]
    assert load_stage("512px", short).steps == 500  # the run before has done the warm-up
    with pytest.raises(UsageError, match="never ends"):
        load_stage("512px", short[1:])


def test_values_that_belong_together_pass_together() -> None:
    assert load_stage("512px", ["optim.schedule=cosine", "optim.decay_start=0.5"]).optim.decay_start == 0.5
    assert (
        check(replace(STAGE, preview=Preview(every=10, prompts=("a",)), batch=Batch(total=128, micro=64))).batch.total
        == 128
    )


def test_averages_go_together_in_any_number() -> None:
    ema = load_stage("512px", ["ema={decays: [], power: [0.05,0.1], snapshot_every: 5000}"]).ema
    assert (ema.decays, ema.power, ema.snapshot_every) == ([], [0.05, 0.1], 5000)
    assert load_stage("512px", ["ema.decays=[]"]).ema.decays == []
    drawn = ["ema.decays=[0.9999,0.999]", "preview={every: 5, prompts: [a], weights: ema/0.999}"]
    assert load_stage("512px", drawn).preview.weights == "ema/0.999"


def test_latents_are_pixels_over_the_factor() -> None:
    assert STAGE.latent_size == 64
    assert load_stage("256px").latent_size == 32


def test_a_window_without_spikes_has_no_effect() -> None:
    with pytest.raises(UsageError, match=r"recovery.window has no effect with recovery.spike=0"):
        load_stage("512px", ["recovery.spike=0", "recovery.window=300"])
    assert load_stage("512px", ["recovery.spike=0"]).recovery.spike == 0
