import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import dump, load_cluster, load_stage
from bigdiff.plan import comparison, probe
from bigdiff.plan.forecast import Basis, forecast
from bigdiff.plan.memory import peak
from bigdiff.plan.probe import Probe
from bigdiff.runtime.devices import device
from bigdiff.runtime.records import write
from bigdiff.train.usage import Start

SMALL = ("model.unet.block_out_channels=[32,64,128,128]", "model.unet.attention_head_dim=4")
START = Start(time=1000.0, devices=16, device="NVIDIA H200", flops=1, network="")


def made(run: Path, starts: Sequence[Start], rates: Sequence[tuple[float, float]]) -> Path:
    """A run of `starts` whose lines have these (time, images/s)."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump(load_stage("256px", [*SMALL, "name=made"])))
    write(run / "usage.json", starts)
    lines = [{"time": at, "speed/images_per_second": rate, "memory/peak_gb": 40.0} for at, rate in rates]
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
    predicted = [row.step.images_per_second, 1e3 * row.step.seconds, peak(row.parts) / 1e9]
    assert [one.predicted for one in found.pairs] == pytest.approx(predicted)
    assert [one.measured for one in found.pairs] == pytest.approx([2.0, 1e3 * 2048 / 2.0, 40.0])
    assert found.pairs[0].ratio == pytest.approx(1 / found.pairs[1].ratio)


def test_the_newest_start_with_lines_is_what_was_measured(tmp_path: Path) -> None:
    starts = [replace(START, time=0.0, devices=8), replace(START, time=1000.0, devices=4), replace(START, time=9000.0)]
    found = comparison.compare(
        made(tmp_path / "run", starts, [(500.0, 80.0), (1400.0, 50.0), (1500.0, 40.0)]), None, 400.0
    )
    assert (found.devices, found.nodes, found.pairs[0].measured) == (4, 1, 40.0)
    assert found.lines == 1


def test_it_is_printed_and_kept(
    tmp_path: Path, probed: Probe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run", [replace(START, devices=2, device="cpu")], [(1500.0, 0.5)])
    with pytest.raises(UsageError, match=r"ran on cpu, which .* does not have: measure it with launch/probe\.py"):
        comparison.compare(run, None, 400.0)
    probe.write(probed, tmp_path / "probe.json")
    monkeypatch.setattr(sys, "argv", ["comparison", str(run), "--probe", str(tmp_path / "probe.json")])
    comparison.main()
    kept = json.loads((run / "forecast.json").read_text())
    found = comparison.compare(run, tmp_path / "probe.json", 400.0)
    assert kept == json.loads(json.dumps(asdict(found)))
    assert [one.what for one in found.pairs] == ["images/s", "step, ms"]
    printed = capsys.readouterr().out
    assert "made on 2 x cpu, 1 node; medians of 1 line\n" in printed
    assert f"{found.pairs[0].predicted:,.1f}" in printed and "measured: " in printed


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.yaml: give the folder of a run"):
        comparison.compare(tmp_path, None, 400.0)
    with pytest.raises(UsageError, match=r"has no lines in metrics\.jsonl of a start in usage\.json"):
        comparison.compare(made(tmp_path / "run", [START], []), None, 400.0)
