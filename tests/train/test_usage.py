from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bigdiff.config.errors import RunError
from bigdiff.config.load import load_stage
from bigdiff.data.latents import LatentSet
from bigdiff.models import flops
from bigdiff.runtime.devices import TABLE
from bigdiff.runtime.records import read, write
from bigdiff.runtime.world import World
from bigdiff.train import autoencoders, networks, usage
from bigdiff.train.usage import Start, Usage

H200 = "NVIDIA H200"


def start(time: float, devices: int, seconds: float = 0.0) -> Start:
    return Start(time=time, devices=devices, device=H200, flops=10**12, network="x", seconds=seconds)


def test_mfu_is_what_the_images_need_over_the_stated_peak() -> None:
    """8 devices at 1,600 images/s of 1 TFLOP each: 200 of 800 TFLOP/s; by hand."""
    found = Usage(starts=(start(0, 8),), peak=800e12, price=0.0).figures(1600.0, 5.0, 3600.0)
    assert found == {"speed/restarts": 0.0, "speed/tflops_per_device": 200.0, "speed/mfu": 0.25}


def test_without_a_peak_or_a_count_the_tag_is_absent() -> None:
    one = start(0, 8)
    assert "speed/mfu" not in Usage(starts=(one,), peak=0.0, price=0.0).figures(1600.0, 5.0, 3600.0)
    uncounted = Usage(starts=(replace(one, flops=0),), peak=800e12, price=0.0)
    assert uncounted.figures(1600.0, 5.0, 3600.0) == {"speed/restarts": 0.0}


def test_money_is_of_all_starts_and_of_the_devices_that_each_had() -> None:
    """Two hours on 8 devices, half an hour on 4, then an hour on 2 with three to go."""
    starts = (start(0, 8, 7200.0), start(9e5, 4, 1800.0), start(1e6, 2))
    found = Usage(starts=starts, peak=0.0, price=1.5).figures(10.0, 3.0, 1e6 + 3600)
    assert found["cost/so_far"] == pytest.approx(1.5 * (16 + 2 + 2))
    assert found["cost/left"] == pytest.approx(1.5 * 2 * 3)
    assert found["speed/restarts"] == 2


def test_a_peak_is_known_or_it_is_said_why_it_is_not() -> None:
    assert usage.peak([H200, H200], half=True) == (TABLE["h200"].peak, "")
    for names, half, said in (
        (["cpu", "cpu"], False, "has no peak of cpu"),
        ([H200, "NVIDIA H200 NVL"], True, "has no peak of NVIDIA H200 NVL"),
        ([H200, "NVIDIA H100 80GB HBM3"], True, "the devices differ: NVIDIA H100 80GB HBM3, NVIDIA H200"),
        ([H200], False, "fp32"),
    ):
        found, why = usage.peak(names, half)
        assert found == 0 and said in why
    assert usage.called(torch.device("cpu")) == "cpu"


def test_the_network_that_is_counted_is_the_one_that_trains(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"), ["engine.gradient_checkpointing=true"])
    with LatentSet(stage.data.latents) as latents:
        found = networks.load(stage)
        built = usage.network(found, [latents])
        trains = {name: tuple(one.shape) for name, one in found.denoiser.named_parameters()}
        assert {name: tuple(one.shape) for name, one in built.denoiser.named_parameters()} == trains
        assert {one.device.type for one in built.denoiser.parameters()} == {"meta"}
        assert flops.of(built) == replace(flops.per_image(stage), recomputed=0)
        assert flops.of(built).frozen > 0
        latents.manifest.contract[networks.TEXT_STATES] = 16  # so that no step runs the text encoder
        assert flops.of(usage.network(found, [latents])) == replace(flops.of(built), frozen=0)


def test_pictures_are_counted_with_their_encoder(toy: Path) -> None:
    stored = load_stage(str(toy / "stage.yaml"))
    pictures = load_stage(str(toy / "stage.yaml"), ["data.latents=", "data.images=set"])
    plain, encoded = (flops.of(usage.network(networks.load(one), [])) for one in (stored, pictures))
    assert encoded.model == plain.model
    assert encoded.frozen > plain.frozen


Begin = Callable[[float], Usage]


@pytest.fixture
def begin(toy: Path, tmp_path: Path, alone: World, monkeypatch: pytest.MonkeyPatch) -> Begin:
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", "log.price_per_device_hour=2"])
    found = networks.load(stage)

    def begun(now: float) -> Usage:
        monkeypatch.setattr(usage.time, "time", lambda: now)
        return usage.begin(found, [], half=False, world=alone)

    return begun


def test_each_start_is_kept_and_how_long_the_one_before_logged(begin: Begin, tmp_path: Path) -> None:
    metrics = tmp_path / "toy" / "metrics.jsonl"
    first = begin(1000.0)
    assert (len(first.starts), first.hours(1000.0 + 3600)) == (1, 1.0)
    metrics.write_text('{"step": 4, "time": 1600.0}\n{"step": 8, "time": 2800.0}\n')
    second = begin(10_000.0)  # from a checkpoint at step 4: what it does again was paid for
    assert [one.seconds for one in second.starts] == [1800.0, 0.0]
    metrics.write_text('{"step": 4, "time": 1600.0}\n')  # as the writer leaves it, and no line comes before the end
    third = begin(20_000.0)
    assert [one.seconds for one in third.starts] == [1800.0, 0.0, 0.0]
    assert third.hours(20_000.0 + 1800) == 1.0
    found = third.figures(10.0, 0.0, 20_000.0)
    assert (found["speed/restarts"], found["cost/so_far"]) == (2, 1.0)
    assert tuple(read(tmp_path / "toy" / usage.RECORD, lambda one: Start(**one), "starts")) == third.starts


def test_a_network_is_counted_once(begin: Begin, tmp_path: Path) -> None:
    first = begin(1.0).starts[-1]
    assert first.flops > 0
    file = tmp_path / "toy" / usage.RECORD
    write(file, [replace(first, flops=7)])
    assert begin(2.0).starts[-1].flops == 7
    write(file, [replace(first, flops=7, network="another")])
    assert begin(3.0).starts[-1] == replace(first, time=3.0)


def test_a_record_of_something_else_is_named(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / usage.RECORD).write_text("{")
    with pytest.raises(RunError, match=r"usage\.json is not a list of starts .*: remove it"):
        begin(1.0)


def test_an_autoencoders_stage_has_no_count(alone: World, tmp_path: Path) -> None:
    small = ("block_out_channels=[8,8]", "norm_num_groups=4", "perceptual_weight=0", "disc_weight=0")
    without = ("perceptual_vgg=", "perceptual_heads=", "disc_start=50001")
    settings = [f"model.autoencoder.{one}" for one in (*small, *without)]
    found = autoencoders.load(load_stage("kl-f8", [f"runs={tmp_path}", *settings]))
    begun = usage.begin(found, [], half=False, world=alone)
    assert begun.starts[-1].flops == 0
    assert begun.lacks == "the FLOPs of an autoencoder's stage are not counted"
    assert begun.figures(10.0, 1.0, begun.starts[-1].time) == {"speed/restarts": 0.0}
