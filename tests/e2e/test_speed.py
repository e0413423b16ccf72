"""Stages with the switches of `speed` on: the same losses and names under each ZeRO stage, resumed by each other."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from bigdiff.checkpoint import index, layout

Ranks = Callable[..., list[str]]
# inductor itself takes minutes on a CPU; aot_eager is torch.compile up to the code that it would write
TRAIN = """
import json, sys
from pathlib import Path
from bigdiff.config.load import load_stage
from bigdiff.models import speed
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import enter
from bigdiff.train import loop, setup
speed.BACKEND = "aot_eager"
sys.stderr = sys.stdout  # warnings, of a switch that is left out
world = enter(60)
for options in json.loads(sys.argv[2]):
    stage = load_stage(sys.argv[1], options)
    with setup.building(stage, world, Stop(), Watchdog(world, Path(stage.runs), 60)) as run:
        loop.train(run)
"""
COMMON = ["text_dropout=0.0", "optim.warmup_steps=0", "checkpoint.every=3", "batch.micro=4"]
ALL = ["speed={channels_last: true, attention: math, compile: blocks}"]
RUNS = {
    "plain": [],
    "contiguous": ["engine.channels_last=false"],
    "kept": ["speed.channels_last=true"],
    "whole": ["speed.compile=whole", "engine.zero_stage=2"],
    "all": [*ALL, "engine.zero_stage=0", "engine.gradient_checkpointing=true"],
    "scattered": ["speed={channels_last: true, attention: flash}", "engine.zero_stage=3"],
    # in buckets, of which the blocks of the network wait for their own
    "overlapped": ["engine={sharding: overlapped, bucket_elements: 20000}"],
    "overlapped, all": [*ALL, "engine={sharding: overlapped, zero_stage: 2, gradient_checkpointing: true}"],
    "overlapped, whole": ["speed.compile=whole", "engine={sharding: overlapped, bucket_elements: 20000}"],
}


TEXT = {
    "every": ["speed.text_encoder=all"],
    "kept": [],
    "compiled": ["speed.text_encoder=compiled", "engine.zero_stage=2"],
    "kept, scattered": ["engine.zero_stage=3"],
    "compiled, scattered": ["speed={text_encoder: compiled, channels_last: true}", "engine.zero_stage=3"],
}


def run(name: str, runs: Path, settings: list[str], steps: int = 6) -> list[str]:
    return [f"runs={runs}", f"name={name}", f"steps={steps}", *COMMON, *settings]


def losses(runs: Path, name: str) -> list[float]:
    lines = (layout.run_folder(str(runs), name) / layout.METRICS).read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def names(runs: Path, name: str) -> list[tuple[str, tuple[int, ...]]]:
    newest = layout.latest(layout.run_folder(str(runs), name))
    assert newest is not None
    return [(one.name, one.shape) for one in index.read(newest).layout]


@pytest.mark.parametrize("ranks", [2])
def test_switches_change_no_loss_and_no_name(run_ranks: Ranks, toy: Path, tmp_path: Path, ranks: int) -> None:
    told = run_ranks(
        TRAIN, ranks, str(toy / "stage.yaml"), json.dumps([run(name, tmp_path, with_) for name, with_ in RUNS.items()])
    )
    assert "uncompiled" not in "".join(told)
    expected, layout_ = losses(tmp_path, "plain"), names(tmp_path, "plain")
    assert len(expected) == 6
    for name in RUNS:
        assert losses(tmp_path, name) == pytest.approx(expected, rel=1e-5), name
        assert names(tmp_path, name) == layout_, name
    assert all("_orig_mod" not in name for name, _ in layout_)


def test_the_way_of_encoding_text_changes_no_loss(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    chain = [run(name, tmp_path, [*with_, "text_dropout=0.3"]) for name, with_ in TEXT.items()]
    told = run_ranks(TRAIN, 2, str(toy / "stage.yaml"), json.dumps(chain))
    assert "uncompiled" not in "".join(told)
    expected = losses(tmp_path, "every")
    assert len(expected) == 6
    for name in TEXT:
        assert losses(tmp_path, name) == pytest.approx(expected, rel=1e-5), name


def test_kernels_for_transformer_blocks_find_gathered_weights(
    start_ranks: Callable[..., list[Popen[str]]], toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported, so that no process may be forked
    with_ = {"plain": [], "scattered": ["speed.transformer=fused", "engine.zero_stage=3"]}
    runs = [run(name, tmp_path, [*settings, "log.every=1"], 3) for name, settings in with_.items()]
    processes = start_ranks(TRAIN, 2, str(toy / "stage.yaml"), json.dumps(runs))
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert "left out" not in "".join(output for output, _ in told)
    plain, scattered = (losses(tmp_path, name) for name in with_)
    assert len(plain) == 3 and scattered == pytest.approx(plain, rel=1e-5)


def test_each_resumes_the_other(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    chain = [
        run("undisturbed", tmp_path, []),
        run("switched", tmp_path, [], 3),
        run("switched", tmp_path, ALL, 5),
        run("switched", tmp_path, ["engine.channels_last=false"], 6),
    ]
    run_ranks(TRAIN, 1, str(toy / "stage.yaml"), json.dumps(chain))
    assert losses(tmp_path, "switched") == pytest.approx(losses(tmp_path, "undisturbed"), rel=1e-5)


def test_fp8_trains_alike_under_each_zero_stage_and_not_as_plain(run_ranks: Ranks, toy: Path, tmp_path: Path) -> None:
    wide = "model.unet.block_out_channels=[16,16]"
    ways = {f"fp8-{stage}": [wide, "speed.linear=fp8", f"engine.zero_stage={stage}"] for stage in (0, 1, 2)}
    runs = [run(name, tmp_path, with_, 3) for name, with_ in {"plain": [wide], **ways}.items()]
    told = run_ranks(TRAIN, 1, str(toy / "stage.yaml"), json.dumps(runs))
    assert "speed.linear" not in "".join(told)
    expected = losses(tmp_path, "plain")
    first, *others = (losses(tmp_path, name) for name in ways)
    assert first != pytest.approx(expected, rel=1e-5) and first == pytest.approx(expected, rel=0.05)
    for other in others:  # a rounding may fall on the other side
        assert other == pytest.approx(first, rel=1e-3)
    assert names(tmp_path, "fp8-1") == names(tmp_path, "plain")


# What a CUDA graph does to memory, without one: a backward pass gives the same tensors each time, with other contents,
# and autograd takes them for gradients as it takes new ones, as torch's cudagraph trees have it
KEPT = """
import torch
from torch._dynamo.backends.common import aot_autograd
from bigdiff.models import speed
torch._C._set_cached_tensors_enabled(True)
def plain(graph, _):
    return graph.forward
def kept(graph, _):
    outputs = []
    def run(*inputs):
        found = graph.forward(*inputs)
        if not outputs:
            outputs.extend(None if one is None else one.detach().clone() for one in found)
            for one in outputs:
                if one is not None:
                    torch._C._add_cached_tensor(one)
        for one, other in zip(outputs, found, strict=True):
            if one is not None:
                one.copy_(other)
        return list(outputs)
    return run
"""
OVERWRITTEN = KEPT + TRAIN.replace('"aot_eager"', "aot_autograd(fw_compiler=plain, bw_compiler=kept)")


def test_gradients_in_a_graphs_memory_survive_deepspeed_where_graphs_are_allowed(
    run_ranks: Ranks, toy: Path, tmp_path: Path
) -> None:
    whole = "speed.compile=whole"
    ways = {
        "one pass, stage 0": ["batch.micro=8", "engine.zero_stage=0"],
        "one pass, stage 1": ["batch.micro=8"],
        "two passes, stage 2": ["engine.zero_stage=2"],
        "two passes, overlapped": ["engine.sharding=overlapped"],
        "two passes, stage 1": [],  # refused with speed.cuda_graphs: bigdiff.config.engine_rules.passes
    }
    runs = [run("plain", tmp_path, []), *(run(name, tmp_path, [whole, *with_]) for name, with_ in ways.items())]
    run_ranks(OVERWRITTEN, 1, str(toy / "stage.yaml"), json.dumps([[*one, "checkpoint.every=9"] for one in runs]))
    expected = losses(tmp_path, "plain")
    right = {name: losses(tmp_path, name) == pytest.approx(expected, rel=1e-4) for name in ways}
    assert right == {name: name != "two passes, stage 1" for name in ways}
