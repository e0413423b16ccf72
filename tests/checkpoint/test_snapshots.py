"""Stored averages and what is made of them, by real ranks, against the same averages tracked in float64."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bigdiff.checkpoint import layout, reader, snapshots
from bigdiff.config.errors import UsageError
from bigdiff.engine.partition import Piece
from bigdiff.models.posthoc import exponent, kept

# 403 steps, three of which move nothing; a snapshot every 20 steps, a checkpoint at the end. The weights [400, 23]
# after each update are a random walk that the test reads, too.
SCRIPT = """
import json, sys, safetensors.torch, torch
from pathlib import Path
from bigdiff.checkpoint import snapshots
from bigdiff.checkpoint.content import AVERAGES, Content
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.checkpoint.writer import CheckpointWriter
from bigdiff.config.schema import Checkpoint, Ema
from bigdiff.engine.partition import Partition, dense, owned
from bigdiff.models.ema import Averages
from bigdiff.runtime.world import enter, leave
run, late = Path(sys.argv[1]), int(sys.argv[2])
w = enter(60)
walk = 1 + torch.cumsum(torch.randn(400, 23, generator=torch.Generator().manual_seed(0)), dim=0) / 20
if w.first:
    run.mkdir(exist_ok=True)
    safetensors.torch.save_file({"walk": walk}, run / "walk.safetensors")
places, share = dense([("a", (3, 5)), ("b", (8,))]), -(-24 // w.size)
low = w.rank * share
end = min(share, 23 - low)
mine = torch.full((share,), float("nan"))  # padding may hold anything
mine[:end] = 0.5
partition = Partition(layout=places, pieces=owned(places, [0, 15], low, low + share), masters=(mine[:2], mine[2:]))
ema = Ema(decays=[0.9], power=[0.05, 0.1], snapshot_every=20)
averages = Averages(partition.masters, ema)
writer = CheckpointWriter(run, w, partition, list(averages.tensors), Checkpoint())
identity, state = Identity(seed=1, manifest="m", total=4, order="o"), TrainState(step=0, samples_seen=0)
def content(tensors):
    about = {"stage": "toy", AVERAGES: json.dumps(averages.began)}
    return Content(partition=partition, tensors=tensors, state=state, identity=identity, about=about)
while state.step < 403:
    if late and state.updates == late and averages.began["ema/0.9"] == 0:  # as when ema.power is set at a resume
        averages = Averages(partition.masters, ema)
        averages.restore({}, {}, partition.masters, late)
    if state.step in (100, 101, 259):
        state = state.without_update(4, "not finite")
    else:
        mine[:end] = walk[state.updates, low : low + end]
        averages.update(partition.masters, state.updates)
        state = state.after(4)
    if state.step % 20 == 0:
        snapshots.save(run, w, content(averages.power))
writer.save(content(averages.tensors))
writer.wait(w)
writer.close()
leave()
"""
Ranks = Callable[..., list[str]]
# 20 snapshots and the checkpoint, which holds the tracked widths themselves
LIMITS = {0.03: 2e-3, 0.05: 1e-6, 0.08: 1e-4, 0.1: 1e-6, 0.15: 2e-4, 0.2: 2e-3}


def tracked(run: Path, width: float, begin: int = 0) -> torch.Tensor:
    """The average of a run's weights from update `begin` on, in float64 [23]."""
    average = torch.zeros(23, dtype=torch.float64)
    for number, weights in enumerate(safetensors.torch.load_file(run / "walk.safetensors")["walk"][begin:].double()):
        average = torch.lerp(weights, average, kept(exponent(width), number + 1))
    return average


def made(run: Path, which: str) -> torch.Tensor:
    named = snapshots.asked(run, layout.checkpoint(run, 403), which).named()
    assert {name: tuple(one.shape) for name, one in named.items()} == {"a": (3, 5), "b": (8,)}
    return torch.cat([one.flatten() for one in named.values()]).double()


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def run(run_ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    run_ranks(SCRIPT, 3, str(folder), "0")
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_all_are_kept_whole_and_hold_the_power_functions_alone(run: Path) -> None:
    folders = layout.steps(layout.snapshots(run))
    assert [layout.step_of(folder) for folder in folders] == list(range(20, 401, 20))
    assert sorted(layout.snapshots(run).iterdir()) == folders
    for folder in folders:
        assert reader.damaged(folder) == ""
        assert reader.read_index(folder).vectors == ("power/0.05", "power/0.1")
        assert sum(file.stat().st_size for file in folder.glob("rank-*")) < 3 * (2 * 4 * 8 + 256)


@pytest.mark.parametrize(("width", "limit"), LIMITS.items())
def test_any_width_is_made_of_what_three_ranks_stored(run: Path, width: float, limit: float) -> None:
    assert apart(made(run, f"sigma={width}"), tracked(run, width)) < limit
    said = snapshots.asked(run, layout.checkpoint(run, 403), f"sigma={width}").about
    assert f"relative width {width}, reconstructed from 21 stored times of power/0.05, power/0.1 (profile " in said


def test_what_a_checkpoint_holds_is_taken_as_it_is(run: Path) -> None:
    walk = safetensors.torch.load_file(run / "walk.safetensors")["walk"].double()
    assert torch.equal(made(run, "raw"), walk[-1])
    assert apart(made(run, "power/0.1"), tracked(run, 0.1)) < 1e-6
    assert torch.equal(made(run, "ema"), made(run, "ema/0.9"))
    assert apart(made(run, "ema"), made(run, "power/0.1")) > 1e-3
    with pytest.raises(UsageError, match=r"weights=ema/0\.5: .* holds raw, ema/0\.9, power/0\.05, power/0\.1"):
        made(run, "ema/0.5")


def test_any_rank_of_another_world_makes_its_own_share(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, asked = made(run, "sigma=0.08"), snapshots.asked(run, layout.checkpoint(run, 403), "sigma=0.08")
    monkeypatch.setattr(snapshots, "SLICE", 4)  # elements at a time: pieces are cut
    pieces = [Piece(local=0, start=9, length=6), Piece(local=8, start=17, length=6)]
    local = asked.local(pieces, 16).double()
    for one in pieces:
        assert torch.equal(local[one.local : one.local + one.length], wanted[one.start : one.start + one.length])
    assert local[6:8].tolist() == [0.0, 0.0] and local[14:].tolist() == [0.0, 0.0]


def test_a_damaged_snapshot_is_left_out_and_named(copy: Path) -> None:
    file = layout.snapshot(copy, 200) / layout.shard(1, 3)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (layout.snapshot(copy, 240) / layout.shard(2, 3)).unlink()
    asked = snapshots.asked(copy, layout.checkpoint(copy, 403), "sigma=0.15")
    assert "from 19 stored times" in asked.about
    assert "step-00000200 is damaged (rank-00001-of-00003.safetensors does not have its recorded sha256)" in asked.about
    assert "step-00000240 is damaged (rank-00002-of-00003.safetensors is missing)" in asked.about
    assert apart(made(copy, "sigma=0.15"), tracked(copy, 0.15)) < 2e-3


def test_what_cannot_be_made_well_is_refused(copy: Path) -> None:
    with pytest.raises(UsageError, match=r"sigma=0\.005 cannot be reconstructed from 21 stored times .* \d\d% off"):
        made(copy, "sigma=0.005")
    shutil.rmtree(layout.snapshots(copy))
    assert apart(made(copy, "sigma=0.05"), tracked(copy, 0.05)) < 1e-6  # the checkpoint has it
    with pytest.raises(UsageError, match=r"sigma=0\.15 cannot be reconstructed from 1 stored times"):
        made(copy, "sigma=0.15")


def test_a_run_that_goes_on_from_before_forgets_what_lay_beyond(copy: Path) -> None:
    (layout.snapshots(copy) / f"{layout.WRITING}step-00000400-1").mkdir()
    snapshots.forget(copy, 300)
    left = sorted(layout.snapshots(copy).iterdir())
    assert [layout.step_of(folder) for folder in left] == list(range(20, 301, 20))
    snapshots.forget(copy, 0)
    assert not list(layout.snapshots(copy).iterdir())


def test_averages_that_began_later_are_made_of_their_own_snapshots(run_ranks: Ranks, tmp_path: Path) -> None:
    run_ranks(SCRIPT, 1, str(tmp_path / "run"), "200")
    found = made(tmp_path / "run", "sigma=0.08")
    assert apart(found, tracked(tmp_path / "run", 0.08, begin=200)) < 1e-3
    assert apart(found, tracked(tmp_path / "run", 0.08)) > 1e-2
    assert (
        "from 11 stored times"
        in snapshots.asked(tmp_path / "run", layout.checkpoint(tmp_path / "run", 403), "sigma=0.08").about
    )


def test_a_rank_that_cannot_write_ends_the_run_on_all(run_ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "averages").write_text("in the way")
    with pytest.raises(AssertionError, match=r"RunError: snapshot .*step-00000020 could not be stored: .*averages"):
        run_ranks(SCRIPT, 2, str(tmp_path / "run"), "0")
