import math
from collections.abc import Callable
from typing import Any

from bigdiff.report import charts
from bigdiff.report.folder import Folder

ALL = {
    "train/grad_norm": 0.5,
    "train/lr": 1e-4,
    "train/loss_t/0": 0.4,
    "train/loss_t/9": 0.1,
    "train/gen": 0.3,
    "validation/loss": 0.21,
    "validation/loss_ema": 0.2,
    "validation/error": 0.01,
    "validation/error_ema": 0.01,
    "distance/ema/0.99": 0.05,
    "speed/data_wait_fraction": 0.01,
    "speed/mfu": 0.3,
    "speed/slowest_rank": 1.1,
    "speed/checkpoint_stall_seconds": 2.0,
}


def figures(html: str) -> list[str]:
    return [part.partition('"')[0] for part in html.split('aria-label="')[1:]]


def test_every_curve_that_has_readings_is_drawn(told: Callable[..., Folder], parsed: Callable[[str], Any]) -> None:
    readings = told(20, (), **ALL).readings
    html = charts.learning(readings)
    parsed(html)
    assert figures(html) == [
        "training loss",
        "validation loss",
        "training loss by timestep",
        "gradient norm",
        "learning rate",
        "distance of the averages",
        "gen",
    ]
    assert html.count("<polygon") == 2, "the standard errors of both validations"
    assert "running mean" in html and "ema/0.99" in html
    speed = charts.speed(readings)
    assert figures(speed) == ["images per second", "MFU", "data wait", "slowest rank", "checkpoint stall, seconds"]


def test_an_autoencoders_terms_on_held_out_pictures_have_their_errors(told: Callable[..., Folder]) -> None:
    terms = {f"validation/{term}{suffix}": 20.0 for term in ("psnr", "kl") for suffix in ("", "_ema")}
    errors = {name.replace("/", "/error_"): 0.5 for name in terms}
    html = charts.learning(told(20, (), **terms, **errors).readings)
    assert figures(html) == ["training loss", "validation psnr", "validation kl"]
    assert html.count("<polygon") == 4


def test_what_has_no_readings_is_left_out_with_a_word(told: Callable[..., Folder]) -> None:
    none = told().readings
    assert "There are no readings yet." in charts.learning(none) and "<svg" not in charts.learning(none)
    assert "There are no readings yet." in charts.speed(none)
    few = told(2).readings
    assert figures(charts.learning(few)) == ["training loss"]
    assert "There is no validation" in charts.learning(few)
    assert "running mean" not in charts.learning(few)
    assert figures(charts.speed(few)) == ["images per second"]


def test_thinning_and_what_is_not_finite_are_said(told: Callable[..., Folder]) -> None:
    assert "All 20 readings are drawn" in charts.learning(told(20).readings)
    assert "Of 2,000 readings at most 1,000 a curve are drawn" in charts.learning(told(2000).readings)
    assert "Running means." in charts.learning(told(2000, (), **ALL).readings)
    assert "Running means." not in charts.learning(told(20, (), **ALL).readings)
    broken = told(3, (), **{"train/grad_norm": math.nan}).readings
    assert figures(charts.learning(broken)) == ["training loss"]
    assert "Left out" not in charts.learning(told(3).readings)
