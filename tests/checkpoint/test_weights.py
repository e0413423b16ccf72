"""All weights of a run by name, from a checkpoint that a real writer wrote and the run's frozen file beside it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bigdiff.checkpoint import frozen, layout, reader, snapshots
from bigdiff.checkpoint.content import AVERAGES, Content
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.checkpoint.weights import complete, names
from bigdiff.checkpoint.writer import CheckpointWriter
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Checkpoint
from bigdiff.engine.partition import Partition, Piece, dense
from bigdiff.runtime.world import World, enter, leave

SHAPES = {"unet.b": (2, 3), "unet.a": (5,), "unet.scale": ()}
KEPT = {"unet.kept": torch.arange(4.0), "text_encoder.x": torch.full((2, 2), 0.5)}


def flat(step: int) -> torch.Tensor:
    return torch.arange(12.0) * 0.25 + step


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    here = enter(60)
    yield here
    leave()


def content(step: int, vectors: dict[str, torch.Tensor], identity: Identity, began: str) -> Content:
    places = dense(SHAPES.items())
    owned = Partition(layout=places, pieces=(Piece(local=0, start=0, length=12),), masters=(flat(step),))
    return Content(
        partition=owned,
        tensors={name: (one,) for name, one in vectors.items()},
        state=TrainState(step=step, samples_seen=8 * step),
        identity=identity,
        about={AVERAGES: began},
    )


def written(run: Path, world: World, given: Content) -> Path:
    writer = CheckpointWriter(run, world, given.partition, list(given.tensors), Checkpoint())
    writer.save(given)
    writer.wait(world)
    writer.close()
    return layout.checkpoint(run, given.state.step)


def saved(run: Path, world: World, stored: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of step 4 whose masters are `flat(4)` and whose average is half of them."""
    identity = Identity(seed=0, manifest="m", total=8, order="o", frozen=frozen.write(run, stored))
    vectors = {"exp_avg": flat(4) * 0, "ema/0.9": flat(4) * 0.5}
    return written(run, world, content(4, vectors, identity, '{"ema/0.9": 0}'))


@pytest.fixture
def folder(tmp_path: Path, world: World) -> Path:
    return saved(tmp_path / "toy", world, KEPT)


def test_the_trained_and_the_frozen_weights_come_together(folder: Path) -> None:
    for which, factor, about in (
        ("raw", 1.0, "raw"),
        ("ema", 0.5, "exponential moving average of decay 0.9"),
        ("ema/0.9", 0.5, "exponential moving average of decay 0.9"),
    ):
        found = complete(folder, which)
        assert found.about == about
        assert found.tensors.keys() == SHAPES.keys() | KEPT.keys() == names(folder)
        assert all(torch.equal(found.tensors[name], one) for name, one in KEPT.items())  # in whatever average
        assert {name: tuple(found.tensors[name].shape) for name in SHAPES} == SHAPES
        together = torch.cat([found.tensors[name].flatten() for name in SHAPES])
        assert torch.equal(together, flat(4) * factor)


def test_the_names_are_known_without_reading_the_weights(folder: Path) -> None:
    shard = folder / layout.shard(0, 1)
    shard.unlink()
    assert names(folder) == SHAPES.keys() | KEPT.keys()


def test_a_run_that_froze_nothing_has_the_trained_weights_alone(tmp_path: Path, world: World) -> None:
    folder = saved(tmp_path / "toy", world, {})
    (tmp_path / "toy" / frozen.NAME).write_bytes(b"not of this run")  # which its checkpoints do not record
    assert complete(folder, "raw").tensors.keys() == SHAPES.keys() == names(folder)


def test_an_average_of_another_width_is_made_and_has_the_frozen_weights_too(tmp_path: Path, world: World) -> None:
    """Of weights that stand still every average is the same, whatever its width."""
    run = tmp_path / "toy"
    identity = Identity(seed=0, manifest="m", total=8, order="o", frozen=frozen.write(run, KEPT))
    still = {name: flat(0) for name in ("power/0.05", "power/0.1")}
    for step in range(5, 41, 5):
        given = content(step, still, identity, '{"power/0.05": 0, "power/0.1": 0}')
        snapshots.save(run, world, given)
    found = complete(written(run, world, given), "sigma=0.08")
    assert "relative width 0.08, reconstructed from" in found.about
    assert found.tensors.keys() == SHAPES.keys() | KEPT.keys()
    together = torch.cat([found.tensors[name].flatten() for name in SHAPES])
    torch.testing.assert_close(together, flat(0), rtol=0.01, atol=0)


def test_a_damaged_checkpoint_is_told_from_one_that_cannot_be_used(folder: Path) -> None:
    """Only of the first kind is the one before it any better."""
    with pytest.raises(UsageError, match=r"weights=ema/0\.5: .* holds raw, ema/0\.9") as caught:
        complete(folder, "ema/0.5")
    assert not isinstance(caught.value, reader.Damaged)
    shard = folder / layout.shard(0, 1)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(reader.Damaged, match=rf"{shard.name} does not have its recorded sha256\): choose another"):
        complete(folder, "raw")
    (folder / layout.INDEX).unlink()
    with pytest.raises(reader.Damaged, match=r"index\.json is missing"):
        names(folder)
    shutil.rmtree(folder)
    with pytest.raises(reader.Damaged, match=r"is not there \(any more\)"):
        complete(folder, "raw")


def test_a_checkpoint_that_is_removed_while_it_is_read_counts_as_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = frozen.read

    def slow(run: Path, recorded: str) -> dict[str, torch.Tensor]:
        shutil.rmtree(folder)  # by the run's retention
        return read(run, recorded)

    monkeypatch.setattr(frozen, "read", slow)
    with pytest.raises(reader.Damaged, match=r"is not there \(any more\)"):
        complete(folder, "raw")


def test_frozen_weights_that_are_gone_or_others_are_refused(folder: Path) -> None:
    file = folder.parents[1] / frozen.NAME
    whole = file.read_bytes()
    file.write_bytes(whole[:20])
    for read in (lambda: complete(folder, "raw"), lambda: names(folder)):
        with pytest.raises(UsageError, match=r"its sha256 differs|frozen\.safetensors cannot be read"):
            read()
    file.unlink()
    for read in (lambda: complete(folder, "raw"), lambda: names(folder)):
        with pytest.raises(UsageError, match=r"frozen\.safetensors is absent: bring it back"):
            read()
    file.write_bytes(whole)
    assert complete(folder, "raw").tensors.keys() == names(folder)
