import io
from dataclasses import replace
from functools import cache

import pytest
from rich.console import Console

from bigdiff.config.load import load_cluster, load_stage
from bigdiff.plan.forecast import Forecast, forecast
from bigdiff.plan.machine import Basis
from bigdiff.plan.outlook import report
from bigdiff.plan.probe import Probe
from bigdiff.runtime.devices import device

SMALL = ("model.unet.block_out_channels=[32,64,128,128]", "model.unet.attention_head_dim=4")
TWO = replace(load_cluster("local"), processes_per_node=2)
GIVEN = Basis(device=device("h200"), price=3.0)


@cache
def forecasts() -> tuple[Forecast, ...]:
    cluster = load_cluster("sd-v1-card")
    return tuple(forecast(load_stage(name, SMALL), cluster, (1, 4), GIVEN) for name in ("256px", "512px"))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_lines_fit_and_every_part_is_told(width: int) -> None:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    out.print(report(forecasts(), GIVEN, out))
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for part in (
        "masters",
        "moments",
        "averages",
        "activations",
        "largest micro-batch",
        "new weights",
        "bucket_elements",
        "all stages",
    ):
        assert part in text
    joined = " ".join(text.split())
    for one in forecasts():
        for sentence in one.assumed:
            assert " ".join(sentence.split()) in joined


def test_the_whole_recipe_costs_what_its_stages_do() -> None:
    out = Console(file=io.StringIO(), width=120, highlight=False)
    out.print(report(forecasts(), GIVEN, out))
    assert isinstance(out.file, io.StringIO)
    last = out.file.getvalue().partition("all stages")[2].split("\n")[2].split()
    hours = sum(one.rows[0].cost.device_hours for one in forecasts())
    assert last[0] == "1"
    assert float(last[2].replace(",", "")) == pytest.approx(hours, abs=0.51)
    assert float(last[3].replace(",", "")) == pytest.approx(3 * hours, abs=0.51)


def test_what_auto_recomputes_is_told_for_each_number_of_nodes() -> None:
    """Of 3.2 GB 2 are reserved: 8 ranks have no room for 64 images at once, 512 have for their 4."""
    cluster = load_cluster("sd-v1-card")
    settings = ["engine.gradient_checkpointing=auto", "engine.memory_gb=3.2", "batch.micro=64"]
    found = forecast(load_stage("512px", [*SMALL, *settings]), cluster, (1, 64), GIVEN)
    out = Console(file=io.StringIO(), width=160, highlight=False)
    out.print(report([found], GIVEN, out))
    assert isinstance(out.file, io.StringIO)
    text = " ".join(out.file.getvalue().split())
    assert "1 nodes: engine.gradient_checkpointing=auto recomputes" in text and "more FLOPs" in text
    assert "64 nodes: engine.gradient_checkpointing=auto recomputes nothing" in text
    assert f"+ {found.flops.recomputed / 1e9:,.1f} recomputed" in text and found.flops.recomputed > 0


def test_a_better_setting_is_named_as_one_would_give_it_and_with_its_doubts(probed: Probe) -> None:
    cluster, stage = load_cluster("sd-v1-card"), load_stage("512px", [*SMALL, "batch.micro=64"])
    found = forecast(stage, cluster, (1, 64), GIVEN)
    better = found.rows[1].better
    assert better is not None
    named = " ".join(better.setting.words(stage.engine))
    assert named.startswith("engine.sharding=overlapped")
    text = printed(found, GIVEN)
    steps = [1e3 * one.seconds for one in (better.step, found.rows[1].step)]
    gained = f"{better.efficiency:.1%} efficiency for {found.rows[1].efficiency:.1%}"
    assert f"64 nodes: {gained}, {steps[0]:,.1f} ms a step for {steps[1]:,.1f}, with {named}" in text
    assert "no GPU has run engine.sharding=overlapped yet" in text and "no memory is known" not in text
    has = forecast(better.setting.of(stage), cluster, (64,), GIVEN)
    assert "better by this model" not in printed(has, GIVEN)
    on_cpu = Basis(probe=replace(probed, rate=1e7))
    local = forecast(
        load_stage("quickstart-32px", ["model.text.encoder=nowhere", "engine.sharding=deepspeed"]), TWO, [1], on_cpu
    )
    text = printed(local, on_cpu)
    assert "efficiency for 100.0%, " in text and "with engine.sharding=overlapped" in text
    assert "no memory is known to hold them against" in text and "no GPU" not in text


def printed(found: Forecast, given: Basis) -> str:
    out = Console(file=io.StringIO(), width=160, highlight=False)
    out.print(report([found], given, out))
    assert isinstance(out.file, io.StringIO)
    return " ".join(out.file.getvalue().split())
