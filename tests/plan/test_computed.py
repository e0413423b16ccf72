from dataclasses import replace

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.recipe import Planned
from bigdiff.plan.computed import Subject, value

STAGE = load_stage("512px")
BASE = load_stage("512px-aesthetics", profile="as-run")


def subject(*overrides: str, **changes: object) -> Subject:
    stage = load_stage("512px", overrides)
    given = {"before": Planned(file="base", stage=BASE), "data": ("a", "b"), **changes}
    return Subject(planned=Planned(file="512px", stage=stage), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("parameters", 859_520_964),
        ("images", 397_312_000),
        ("attention", [1, 2, 4]),
        ("start", "base"),
        ("branch", "the end"),
        ("data", "a, b"),
        ("loss", "mean squared error"),
        ("text_states", "last_hidden_state"),
        ("ema", 0.9999),
    ],
)
def test_values_of_a_shipped_stage(key: str, expected: object) -> None:
    assert value(key, subject()) == expected


@pytest.mark.parametrize(
    ("key", "override", "expected"),
    [
        ("parameters", "model.unet.cross_attention_dim=1024", 865_910_724),  # SD 2's width in SD 1's network
        ("images", "batch.total=1024", 194_000 * 1024),
        ("attention", f"model.unet.down_block_types=[{','.join(['DownBlock2D'] * 4)}]", "[] down, [1, 2, 4] up"),
        ("branch", "init_step=465000", "before the decay"),
        ("branch", "init_step=500000", "step 500000"),
        ("ema", "ema.decays=[]", "none"),
    ],
)
def test_values_follow_the_settings(key: str, override: str, expected: object) -> None:
    assert value(key, subject(override)) == expected


def test_the_rate_at_a_step_counts_from_either_end_and_goes_on_where_it_is_told_to() -> None:
    warm = subject()
    assert value("rate@0", warm) == pytest.approx(1e-10)
    assert value("rate@5000", warm) == pytest.approx(5.000005e-5)
    decay = subject("optim.schedule=linear")
    assert value("rate@-1", decay) == pytest.approx(1e-4 / (194_000 - 10_000))
    assert value("rate@0", replace(decay, began=10_000)) == pytest.approx(1e-4)
    assert value("rate@-1", replace(decay, began=10_000)) == pytest.approx(1e-4 / 194_000)


def test_the_average_warms_up() -> None:
    assert value("ema@90", subject()) == 0.91
    assert value("ema@90", subject("ema.decays=[0.5]")) == 0.5


def test_a_stage_of_random_weights_starts_from_nothing() -> None:
    assert value("start", subject("init_from=", before=None)) == "random weights"
    assert value("start", subject("init_from=", "init_unet=sd.ckpt", before=None)) == "sd.ckpt"
    assert value("start", subject(before=None)) == "256px"


@pytest.mark.parametrize("key", ["colour", "colour@3", "images@3"])
def test_what_nothing_computes_is_refused_with_the_choices(key: str) -> None:
    with pytest.raises(UsageError, match=rf"nothing computes {key}: use one of"):
        value(key, subject())
