import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import dump, load_cluster, load_stage
from bigdiff.models.network import network
from bigdiff.plan import comparison, probe
from bigdiff.plan.forecast import forecast
from bigdiff.plan.machine import Basis
from bigdiff.plan.probe import Probe
from bigdiff.runtime.devices import device
from bigdiff.runtime.records import write
from bigdiff.train.memory import peak
from bigdiff.train.usage import Start

SMALL = (
    "model.unet.block_out_channels=[32,64,128,128]",
    "model.unet.attention_head_dim=4",
    "model.unet.layers_per_block=1",
)
START = Start(time=1000.0, devices=16, device="NVIDIA H200", flops=1, network="")


def made(run: Path, starts: Sequence[Start], rates: Sequence[tuple[float, float]]) -> Path:
    """A run of `starts` whose lines have these (time, images/s)."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(load_stage("256px", [*SMALL, "name=made"])))
    write(run / "usage.json", starts)
    same = {"memory/peak_gb": 40.0, "step": 9}
    lines = [{"time": at, "speed/images_per_second": rate, **same} for at, rate in rates]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    return run


def test_medians_of_the_last_quarter_stand_beside_the_forecast(tmp_path: Path) -> None:
    run = made(
        tmp_path / "run", [START], [(1000.0 + at, 10.0) for at in range(9)] + [(1100.0 + at, at) for at in (1, 2, 7)]
    )
    readings = [{"host": f"n{rank // 8}"} for rank in range(16)]
    (run / "logs").mkdir()
    (run / "logs" / "preflight.json").write_text(json.dumps({"readings": readings}))
    found = comparison.compare(run, None, 400.0)
    cluster = replace(load_cluster("sd-v1-card"), processes_per_node=8)
    (row,) = forecast(load_stage("256px", SMALL), cluster, [2], Basis(device=device("h200"))).rows
    assert (found.devices, found.nodes, found.lines) == (16, 2, 3)
    pairs = {one.what: one for one in found.pairs}
    speed, step, memory = (pairs[name] for name in ("images/s", "step, ms", "memory of a rank, GB"))
    assert speed.predicted == pytest.approx(row.step.images_per_second) and speed.measured == 2.0
    assert step.predicted == pytest.approx(1e3 * row.step.seconds) and step.measured == 1e3 * 2048 / 2.0
    assert memory.predicted == pytest.approx(peak(row.parts) / 1e9) and memory.measured == 40.0
    assert speed.ratio is not None and step.ratio is not None and speed.ratio == pytest.approx(1 / step.ratio)
    assert pairs["a rank sends in a step, MB"].predicted == pytest.approx(row.step.sent / 1e6)
    assert found.parts == row.parts and found.absent == () and "device-hours" not in pairs  # it is at step 9


def test_the_newest_start_with_lines_is_what_was_measured(tmp_path: Path) -> None:
    starts = [replace(START, time=0.0, devices=8), replace(START, time=1000.0, devices=4), replace(START, time=9000.0)]
    found = comparison.compare(
        made(tmp_path / "run", starts, [(500.0, 80.0), (1400.0, 50.0), (1500.0, 40.0)]), None, 400.0
    )
    assert (found.devices, found.nodes, found.pairs[0].measured) == (4, 1, 40.0)
    assert found.lines == 1


def test_on_a_device_without_a_known_peak_bytes_are_compared_and_times_are_not_guessed(tmp_path: Path) -> None:
    run = made(tmp_path / "run", [replace(START, devices=2, device="cpu", flops=3 * 10**9)], [(1500.0, 0.5)])
    checkpoint = run / "checkpoints" / "step-00000009"
    checkpoint.mkdir(parents=True)
    (checkpoint / "index.json").write_bytes(b"0" * 1000)
    found = comparison.compare(run, None, 400.0)
    pairs = {one.what: one for one in found.pairs}
    assert list(pairs) == [
        "steps",
        "GFLOP an image",
        "a rank sends in a step, MB",
        "memory of a rank, GB; measured with its libraries",
        "a checkpoint, MB",
        "all checkpoints, MB at most",
    ]
    stage = load_stage(str(run / "config.yaml"))
    sizes = network(stage).sizes
    assert (
        pairs["a checkpoint, MB"].predicted == 4 * sum(sizes) * 4 / 1e6 and pairs["a checkpoint, MB"].measured == 1e-3
    )
    assert pairs["GFLOP an image"].predicted == 3.0 and pairs["GFLOP an image"].ratio is None
    assert pairs["steps"].measured == 9
    assert sum(part.bytes for part in found.parts if part.name == "weights") == 4 * sum(sizes)
    (why,) = found.absent
    assert "times and cost: bigdiff/runtime/devices.py has no peak of cpu" in why and f"{tmp_path}/probe.json" in why


def test_a_probe_beside_the_run_is_taken_where_it_fits(tmp_path: Path, probed: Probe) -> None:
    run = made(tmp_path / "run", [replace(START, devices=2, device="cpu")], [(1500.0, 0.5)])
    probe.write(probed, tmp_path / "probe.json")
    found = comparison.compare(run, None, 400.0)
    assert found.pairs[0].what == "images/s" and found.absent == ()
    probe.write(replace(probed, half=True), tmp_path / "probe.json")
    assert "times and cost: the probe's precision" in comparison.compare(run, None, 400.0).absent[0]
    with pytest.raises(UsageError, match="the probe's precision"):  # asked for by its name
        comparison.compare(run, tmp_path / "probe.json", 400.0)
    probe.write(replace(probed, device="another"), tmp_path / "probe.json")
    assert "is of another, and the run was on cpu" in comparison.compare(run, None, 400.0).absent[0]


def test_a_finished_runs_hours_and_money_stand_beside_the_planned(tmp_path: Path) -> None:
    starts = [replace(START, devices=4, seconds=1800.0), replace(START, devices=2, time=1400.0)]
    run = made(tmp_path / "run", starts, [(1500.0, 0.5), (8600.0, 0.5)])
    stage = load_stage("256px", [*SMALL, "name=made", "steps=9", "optim.warmup_steps=2", "log.price_per_device_hour=3"])
    (run / "config.yaml").write_text(dump(stage))
    pairs = {one.what: one for one in comparison.compare(run, None, 400.0).pairs}
    assert pairs["device-hours"].measured == pytest.approx(4 * 0.5 + 2 * 2.0)
    assert pairs["money"].measured == pytest.approx(3 * 6.0)
    hours = pairs["step, ms"].predicted / 1e3 * 9 * 2 / 3600
    assert pairs["device-hours"].predicted == pytest.approx(hours)
    assert pairs["money"].predicted == pytest.approx(3 * hours)


def test_what_auto_came_to_in_the_newest_start_is_predicted(tmp_path: Path) -> None:
    starts = [replace(START, recomputed=True), replace(START, time=1400.0, recomputed="up_blocks.3,mid_block")]
    run = made(tmp_path / "run", starts, [(1500.0, 0.5)])
    written = [
        load_stage("256px", [*SMALL, "name=made", f"engine.gradient_checkpointing={how}"])
        for how in ("auto", "up_blocks.3,mid_block", "false")
    ]
    found = []
    for stage in written:
        (run / "config.yaml").write_text(dump(stage))
        found.append(comparison.compare(run, None, 400.0))
    assert found[0] == found[1] != found[2]


def test_of_an_autoencoders_stage_checkpoints_are_compared(tmp_path: Path) -> None:
    run = made(tmp_path / "run", [replace(START, devices=2, device="cpu", flops=0)], [(1500.0, 0.5)])
    stage = load_stage("kl-f8", ["model.autoencoder.block_out_channels=[32,32,32,32]"])
    (run / "config.yaml").write_text(dump(stage))
    found = comparison.compare(run, None, 400.0)
    assert [one.what for one in found.pairs] == ["steps", "a checkpoint, MB", "all checkpoints, MB at most"]
    assert found.absent == (
        "times, cost, FLOPs, memory and traffic: the planner does not count the stage of an autoencoder",
    )


def test_it_is_printed_and_kept(
    tmp_path: Path, probed: Probe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run", [replace(START, devices=2, device="cpu")], [(1500.0, 0.5)])
    probe.write(probed, tmp_path / "measured.json")
    monkeypatch.setattr(sys, "argv", ["comparison", str(run), "--probe", str(tmp_path / "measured.json")])
    comparison.main()
    kept = json.loads((run / "forecast.json").read_text())
    found = comparison.compare(run, tmp_path / "measured.json", 400.0)
    assert kept == json.loads(json.dumps(asdict(found)))
    printed = capsys.readouterr().out
    assert "made on 2 x cpu, 1 node; medians of 1 line\n" in printed
    assert f"{found.pairs[0].predicted:.4g}" in printed and "measured: " in printed
    assert printed.strip() == comparison.text(comparison.report(found)).strip()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.yaml: give the folder of a run"):
        comparison.compare(tmp_path, None, 400.0)
    with pytest.raises(UsageError, match=r"has no lines in metrics\.jsonl of a start in usage\.json"):
        comparison.compare(made(tmp_path / "run", [START], []), None, 400.0)
