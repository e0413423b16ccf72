import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from steps import optimizer_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigdiff.checkpoint import layout
from bigdiff.checkpoint.state import TrainState, Window
from bigdiff.config.errors import LastingError, RunError, UsageError
from bigdiff.config.schema import Autoencoder
from bigdiff.evaluate.grid import Pictures
from bigdiff.metrics.meters import Slowest
from bigdiff.train import report
from bigdiff.train.run import Run
from bigdiff.train.step import meter
from bigdiff.train.usage import Start, Usage

MakeRun = Callable[..., Run]


def metered(run: Run) -> tuple[float, float]:
    """One step, counted: its learning rate and norm."""
    batches = next(run.batches)
    done = optimizer_step(run, batches)
    meter(run, batches, done)
    run.state = run.state.after(8)
    return done.stepped.rate, float(done.stepped.norm)


def points(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / layout.METRICS).read_text().splitlines()]


def test_a_line_for_a_person_and_a_point_per_tag(make_run: MakeRun) -> None:
    run = make_run()
    rate, norm = metered(run)
    report.log(run, rate, norm, {})
    (line,) = run.say.told  # type: ignore[attr-defined]
    (point,) = points(run)
    assert re.fullmatch(
        rf"step      1/20  loss {point['train/loss']:.4f}  grad {norm:.3f}  lr 2\.00e-02  "
        r"\d+\.\d images/s  data wait \d+\.\d%",
        line,
    )
    assert (point["step"], point["samples_seen"], point["train/samples_seen"]) == (1, 8, 8.0)
    assert point["train/grad_norm"] == norm and point["train/lr"] == rate
    assert point["train/loss_t/0"] == pytest.approx(point["train/loss"])
    assert not any(f"train/loss_t/{number}" in point for number in range(1, 10))  # of whom no sample was seen
    assert 0 < point["train/share"] <= 1
    assert point["speed/hours_left"] == pytest.approx(19 * 8 / point["speed/images_per_second"] / 3600)
    assert 0.05 < point["memory/peak_gb"] < 100 and point["speed/slowest_rank"] == 1.0
    assert point["data/damaged"] == point["data/tombstoned"] == point["recovery/skipped_steps"] == 0
    assert point["speed/checkpoint_stall_seconds"] == 0
    assert point["speed/restarts"] == 0
    assert not point.keys() & {"speed/tflops_per_device", "speed/mfu", "cost/so_far", "cost/left"}
    assert run.losses == [point["train/loss"]]
    assert run.meters.empty


def test_flops_and_money_follow_the_speed_and_the_clock(make_run: MakeRun) -> None:
    run = make_run()
    earlier = Start(time=0.0, devices=4, device="x", flops=10**9, network="", seconds=7200.0)
    run.usage = Usage(starts=(earlier, replace(earlier, time=time.time() - 1800, devices=2)), peak=1e12, price=3.0)
    report.log(run, *metered(run), {})
    (point,) = points(run)
    rate, left = point["speed/images_per_second"], point["speed/hours_left"]
    assert point["speed/tflops_per_device"] == pytest.approx(1e9 * rate / 2 / 1e12)
    assert point["speed/mfu"] == pytest.approx(point["speed/tflops_per_device"])  # the peak is 1 TFLOP/s
    assert point["cost/so_far"] == pytest.approx(3 * (4 * 2 + 2 * 0.5), rel=0.01)
    assert point["cost/left"] == pytest.approx(3 * 2 * left)
    assert point["speed/restarts"] == 1


def test_the_first_page_has_every_tag_of_speed_and_money_that_a_person_looks_for() -> None:
    shown = [tag for tags in report.CHARTS.values() for tag in tags]
    for tag in ("speed/mfu", "speed/images_per_second", "cost/so_far", "cost/left"):
        assert sum(bool(re.search(one, tag)) for one in shown) == 1


def test_the_first_page_has_no_chart_without_points(make_run: MakeRun) -> None:
    run = make_run()
    run.usage = replace(run.usage, peak=0.0, price=0.0)
    report.log(run, *metered(run), {})
    tags = points(run)[0].keys()
    for name, shown in report.charts(run.stage, run.usage).items():
        assert any(re.search(one, tag) for one in shown for tag in tags), name
    run.usage = replace(run.usage, peak=1e12, price=3.0)
    stage = replace(run.stage, validation=replace(run.stage.validation, every=10))
    assert report.CHARTS.keys() - report.charts(stage, run.usage).keys() == {"PSNR of reconstructions, dB"}
    stage = replace(stage, model=replace(stage.model, autoencoder=Autoencoder()))
    gone = {name for name in report.CHARTS if "timestep" in name}
    assert report.CHARTS.keys() - report.charts(stage, run.usage).keys() == gone


def test_what_is_unusual_is_in_the_line(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("data.damage_budget=0.5")
    rate, norm = metered(run)
    window = Window(begin=1, end=4, reason="loss spike")
    run.state = TrainState(step=5, samples_seen=40, skipped=(window,))
    run.quarantine.report("00000.tar", 3, None, "truncated")
    report.log(run, rate, norm, {})
    assert run.say.told[0].endswith("  damaged and substituted 1  steps without effect 3")  # type: ignore[attr-defined]
    assert (points(run)[0]["data/damaged"], points(run)[0]["recovery/skipped_steps"]) == (1, 3)
    assert "00000.tar" in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "named"), [(1.2, False), (1.3, True)])
def test_a_process_that_is_slower_than_the_others_is_named(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, ratio: float, named: bool
) -> None:
    run = make_run()
    rate, norm = metered(run)
    reading = replace(run.meters.take(), slowest=Slowest(rank=0, ratio=ratio))
    monkeypatch.setattr(run.meters, "take", lambda communication: reading)
    report.log(run, rate, norm, {})
    assert ("  rank 0 on here is slow, 1.30 of the median" in run.say.told[0]) is named  # type: ignore[attr-defined]
    assert points(run)[0]["speed/slowest_rank"] == ratio


def test_ranks_beyond_the_first_write_nothing(make_run: MakeRun) -> None:
    run = make_run()
    rate, norm = metered(run)
    run.writer = None
    report.log(run, rate, norm, {})
    assert points(run) == []


def test_the_distance_of_an_average_is_relative_to_the_weights(make_run: MakeRun) -> None:
    run = make_run("ema.decays=[0.9,0.5]")
    assert report.drift(run) == {"ema/0.9": 0.0, "ema/0.5": 0.0}
    weight = run.engine.partition.masters[0]
    run.ema.tensors["ema/0.5"][0].copy_(weight * 0.75)
    assert report.drift(run) == pytest.approx({"ema/0.9": 0.0, "ema/0.5": 0.25})
    report.log(run, *metered(run), {})
    assert points(run)[0].keys() >= {"distance/ema/0.9", "distance/ema/0.5"}


def test_without_averages_nothing_is_apart(make_run: MakeRun) -> None:
    assert report.drift(make_run("ema.decays=[]")) == {}


def test_too_much_damage_ends_the_run(make_run: MakeRun) -> None:
    run = make_run("data.damage_budget=0.01")
    run.state = TrainState(step=4, samples_seen=32)
    assert report.substituted(run) == (0, 0)
    for row in range(32):
        run.quarantine.report("00000.tar", row, None, "truncated")
    with pytest.raises(LastingError, match=r"data\.damage_budget=0\.01"):
        report.substituted(run)
    run.began = 32  # samples of an earlier start, whose damage is not counted here, do not count either
    run.state = TrainState(step=8, samples_seen=64)
    with pytest.raises(RunError, match="32"):
        report.substituted(run)


class Flat:
    """Draws the weight's first number as a grey."""

    def draw(self, weights: dict[str, torch.Tensor]) -> Pictures:
        assert {name: tuple(one.shape) for name, one in weights.items()} == {"weight": (2, 4, 4)}
        return np.full((4, 4, 3), int(weights["weight"].flatten()[0]), np.uint8)


@pytest.mark.parametrize(
    ("wanted", "greys"),
    [("ema", {"ema": 90}), ("ema/0.9", {"ema/0.9": 90}), ("raw", {"raw": 30}), ("ema, raw", {"ema": 90, "raw": 30})],
)
def test_pictures_are_of_the_weights_that_are_named(make_run: MakeRun, wanted: str, greys: dict[str, int]) -> None:
    run = make_run()
    run.stage = replace(run.stage, preview=replace(run.stage.preview, weights=wanted))
    run.engine.partition.masters[0].fill_(30)
    run.ema.tensors["ema/0.9"][0].fill_(90)
    run.state = TrainState(step=2, samples_seen=16)
    report.preview(run, Flat())
    assert run.writer is not None
    run.writer.close()
    board = EventAccumulator(str(run.folder / layout.TENSORBOARD)).Reload()
    assert board.Tags()["images"] == [f"preview/{name}" for name in greys]
    for name, grey in greys.items():
        (event,) = board.Images(f"preview/{name}")
        assert event.step == 16
        picture = decoded(event.encoded_image_string)
        assert picture.shape == (4, 4, 3) and (picture == grey).all()


def decoded(png: bytes) -> np.ndarray[Any, Any]:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_pictures_of_an_average_that_there_is_not_are_refused(make_run: MakeRun) -> None:
    run = make_run()
    run.stage = replace(run.stage, preview=replace(run.stage.preview, weights="ema/0.5"))
    with pytest.raises(UsageError, match=r"ema/0\.5"):
        report.preview(run, Flat())


def test_what_held_out_samples_gave_is_in_the_line_and_the_point(make_run: MakeRun) -> None:
    run = make_run()
    found = {
        "validation/loss": 0.5,
        "validation/error": 0.01,
        "validation/loss_ema": 0.25,
        "validation/error_ema": 0.02,
    }
    report.log(run, *metered(run), found)
    assert run.say.told[0].endswith("  validation 0.5000 +- 0.0100  validation ema 0.2500 +- 0.0200")  # type: ignore[attr-defined]
    assert report.heldout({"validation/loss": 0.5, "validation/error": 0.01, "validation/psnr": 21.234}) == (
        "  validation 0.5000 +- 0.0100 (21.23 dB)"
    )
    assert found.items() <= points(run)[0].items()
