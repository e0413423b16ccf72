"""Checkpoints read back: by any number of ranks, whole or passed over, and no more than is asked for."""

import json
import os
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from bigdiff.checkpoint import index, layout, reader
from bigdiff.checkpoint.index import Damage
from bigdiff.config.errors import UsageError
from bigdiff.engine.partition import Piece

if TYPE_CHECKING:
    from conftest import Forker

SAVE = """
run, kind, steps = Path(sys.argv[1]), sys.argv[2], [int(step) for step in sys.argv[3].split(",")]
world = enter(60)
toy = Toy(run, kind, world)
writer = toy.writer(keep=9)
for step in steps:
    writer.save(toy.content(step))
writer.wait(world)
say(stall=writer.stall_seconds())
"""
LOAD = """
run, kind = Path(sys.argv[1]), sys.argv[2]
toy, told = Toy(run, kind, enter(60)), []
saved = toy.load(told)
if saved is None:
    say(none=True, told=told)
else:
    say(step=saved.state.step, samples=saved.state.samples_seen, wrong=toy.wrong(saved), told=told,
        names=sorted(saved.vectors), averages=saved.about["averages"], seed=saved.identity.seed)
"""
KINDS = ("even", "flat", "scattered")


def loaded(forker: "Forker", run: Path, size: int = 1, kind: str = "flat") -> dict[str, Any]:
    """What all ranks agree on."""
    told = [lines[-1] for lines in forker.run(LOAD, size, run, kind)]
    assert all({**one, "told": []} == {**told[0], "told": []} for one in told)
    assert not any(one["told"] for one in told[1:])  # rank 0 warns for all
    return told[0]


@pytest.mark.parametrize(("saved", "read"), [(1, 2), (2, 3), (3, 1), (5, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_ranks_and_stage_loads_what_any_other_saved(
    forker: "Forker", tmp_path: Path, kind: str, saved: int, read: int
) -> None:
    forker.run(SAVE, saved, tmp_path, kind, "7")
    other = KINDS[(KINDS.index(kind) + saved) % len(KINDS)]
    for size, how in ((read, other), (saved, kind)):
        told = loaded(forker, tmp_path, size, how)
        assert (told["step"], told["samples"], told["seed"], told["wrong"]) == (7, 28, 1, "")
        assert told["names"] == ["ema/0.9", "exp_avg", "exp_avg_sq", "master"]


def test_the_whole_weights_are_read_by_name(forker: "Forker", tmp_path: Path) -> None:
    forker.run(SAVE, 3, tmp_path, "scattered", "7")
    folder = layout.checkpoint(tmp_path, 7)
    raw, first, moment = (reader.read_weights(folder, which) for which in ("raw", "ema", "exp_avg"))
    assert list(raw) == ["a", "b", "scale", "c", "d", "e"]
    assert raw["a"].shape == (3, 5) and raw["scale"].shape == ()
    flat = torch.cat([weight.flatten() for weight in raw.values()])
    assert torch.equal(flat, ((torch.arange(150) * 7 + 7 * 7_919) % 16_777_213).float())
    assert all(torch.equal(first[name], reader.read_weights(folder, "ema/0.9")[name]) for name in first)
    assert not torch.equal(first["a"], raw["a"]) and not torch.equal(first["a"], moment["a"])
    with pytest.raises(UsageError, match=r"weights=ema/0\.5: .*step-00000007 holds raw, ema/0\.9"):
        reader.read_weights(folder, "ema/0.5")


def test_a_file_is_what_safetensors_reads(forker: "Forker", tmp_path: Path) -> None:
    forker.run(SAVE, 2, tmp_path, "scattered", "7")
    for rank in (0, 1):
        held = load_file(layout.checkpoint(tmp_path, 7) / layout.shard(rank, 2))
        assert list(sorted(held)) == ["ema/0.9", "exp_avg", "exp_avg_sq", "master"]
        assert {vector.dtype for vector in held.values()} == {np.dtype(np.float32)}
        assert all(np.isfinite(vector).all() for vector in held.values())  # padding, which was NaN, is zero


def flip(path: Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    other = path.with_name(SHARD)
    other.rename(path.with_name("aside"))
    path.rename(other)
    path.with_name("aside").rename(path)


SHARD = layout.shard(1, 2)
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "bit of a vector": (SHARD, flip, "sha256"),
    "bit of a header": (SHARD, lambda path: flip(path, 12), "sha256"),
    "cut": (SHARD, lambda path: os.truncate(path, path.stat().st_size - 1), "bytes instead of"),
    "empty": (SHARD, lambda path: os.truncate(path, 0), "0 bytes instead of"),
    "longer": (SHARD, lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes instead of"),
    "gone": (SHARD, Path.unlink, "missing"),
    "renamed": (SHARD, lambda path: path.rename(path.with_suffix(".old")), "missing"),
    "swapped": (layout.shard(0, 2), swap, "sha256"),
    "a folder": (SHARD, lambda path: (path.unlink(), path.mkdir()), "bytes instead of"),
    "pieces": (layout.PIECES, flip, "sha256"),
    "no pieces": (layout.PIECES, Path.unlink, "cannot be read"),
    "index bit": (layout.INDEX, lambda path: flip(path, path.read_bytes().index(b'"step":') + 7), "sha256"),
    "index format": (layout.INDEX, lambda path: flip(path, path.read_bytes().index(b'"format": ') + 10), "sha256"),
    "index cut": (layout.INDEX, lambda path: os.truncate(path, 50), "cannot be read"),
    "index of another kind": (layout.INDEX, lambda path: path.write_text("[1]"), "cannot be read"),
    "no index": (layout.INDEX, Path.unlink, "missing"),
}


@pytest.fixture(scope="module")
def two(forker: "Forker", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 3 by two ranks."""
    run = tmp_path_factory.mktemp("run")
    forker.run(SAVE, 2, run, "flat", "2,3")
    return run


def test_damage_is_noticed_and_the_one_before_is_used(forker: "Forker", two: Path, tmp_path: Path) -> None:
    runs = {}
    for number, (name, damage, _) in enumerate(DAMAGES.values()):
        runs[number] = shutil.copytree(two, tmp_path / str(number))
        damage(layout.checkpoint(runs[number], 3) / name)
    script = "world = enter(60)\n" + LOAD.replace("enter(60)", "world")
    body = "\n".join("    " + line for line in script.splitlines()[1:])
    everywhere = f"world = enter(60)\nfor sys.argv[1:2] in [[run] for run in sys.argv[1].split(':')]:\n{body}\n"
    answers = forker.run(everywhere, 2, ":".join(map(str, runs.values())), "flat")
    for (case, (name, _, word)), first, second in zip(DAMAGES.items(), *answers, strict=True):
        assert (first["step"], first["wrong"], second["step"]) == (2, "", 2), case
        (warning,) = first["told"]
        assert name in warning and word in warning and "step-00000003" in warning, case
        assert second["told"] == []


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_one_is_not_exported(two: Path, tmp_path: Path, case: str) -> None:
    name, damage, word = DAMAGES[case]
    folder = layout.checkpoint(shutil.copytree(two, tmp_path / "run"), 3)
    damage(folder / name)
    assert name in reader.damaged(folder)
    with pytest.raises(reader.Damaged, match=word.replace("cannot be read", "cannot be read|missing")):
        reader.read_weights(folder, "raw")


def test_each_rank_looks_at_its_share_of_the_files(two: Path, tmp_path: Path) -> None:
    folder = layout.checkpoint(shutil.copytree(two, tmp_path / "run"), 3)
    flip(folder / SHARD)
    assert [bool(reader.damaged(folder, part, 3)) for part in range(3)] == [False, False, True]


def test_files_of_others_do_no_harm(forker: "Forker", two: Path, tmp_path: Path) -> None:
    run = shutil.copytree(two, tmp_path / "run")
    folder = layout.checkpoint(run, 3)
    (folder / ".nfs000012").write_bytes(b"x")
    (folder / layout.shard(2, 3)).write_bytes(b"x")
    (layout.checkpoints(run) / "step-00000004.bak").mkdir()
    told = loaded(forker, run, 2)
    assert (told["step"], told["wrong"], told["told"]) == (3, "", [])


def test_none_before_the_first_and_an_error_when_all_are_damaged(forker: "Forker", two: Path, tmp_path: Path) -> None:
    assert loaded(forker, tmp_path / "nothing") == {"none": True, "told": []}
    run = shutil.copytree(two, tmp_path / "run")
    for step in (2, 3):
        flip(layout.checkpoint(run, step) / SHARD)
    with pytest.raises(AssertionError, match=r"no checkpoint in .* is undamaged: delete the folder to start afresh"):
        loaded(forker, run, 2)


def test_an_older_format_and_another_network_are_refused_by_name(forker: "Forker", two: Path, tmp_path: Path) -> None:
    run = shutil.copytree(two, tmp_path / "run")
    file = layout.checkpoint(run, 3) / layout.INDEX
    file.write_text(json.dumps({"format": 2, "state": {}}))
    with pytest.raises(AssertionError, match=r"step-00000003 has format 2 of an earlier version, this one reads 3"):
        loaded(forker, run, 2)
    other = LOAD.replace("Toy(run, kind, enter(60))", 'Toy(run, kind, enter(60), {"a": (150,)})')
    with pytest.raises(AssertionError, match="holds another network than this stage's model"):
        forker.run(other, 2, two, "flat")
    needed = LOAD.replace(
        "saved = toy.load(told)",
        "from bigdiff.checkpoint import reader\n"
        + (
            'names = reader.Names(needed=("master", "power/0.1"))\n'
            "saved = reader.load(run, toy.world, toy.partition, names, told.append)"
        ),
    )
    with pytest.raises(AssertionError, match=r"step-00000003 holds no power/0\.1, only master, exp_avg, exp_avg_sq"):
        forker.run(needed, 2, two, "flat")


def test_only_the_files_and_names_that_are_needed_are_opened(two: Path, tmp_path: Path) -> None:
    folder = layout.checkpoint(shutil.copytree(two, tmp_path / "run"), 3)
    found, whole = reader.read_index(folder), 150
    (folder / SHARD).unlink()
    # the flat order is reversed: the last parameters lie in the first file
    piece = Piece(local=2, start=whole - 40, length=40)
    vectors = reader.local_vectors(folder, found, ["exp_avg"], [piece], 45)
    assert list(vectors) == ["exp_avg"]
    assert vectors["exp_avg"].count_nonzero() == 40 and not vectors["exp_avg"][:2].any()
    with pytest.raises(Damage, match=f"{SHARD} cannot be read"):
        reader.local_vectors(folder, found, ["exp_avg"], [Piece(local=0, start=0, length=whole)], whole)


def test_a_folder_that_disappears_is_one_sentence(two: Path, tmp_path: Path) -> None:
    folder = layout.checkpoint(shutil.copytree(two, tmp_path / "run"), 3)
    shutil.rmtree(folder)
    with pytest.raises(reader.Damaged, match=r"is not there \(any more\): the run may have removed it"):
        reader.read_weights(folder, "raw")


VANISH = """
import shutil, threading
run, kind = Path(sys.argv[1]), sys.argv[2]
world = enter(60)
toy, told, step = Toy(run, kind, world), [], 3
from bigdiff.checkpoint import layout, vectors
fetch, folder = vectors.fetch, layout.checkpoint(run, 3)
def late(path, *rest):  # the other life's retention comes between the check and the read
    if world.first and folder.exists():
        shutil.rmtree(folder)
    while folder.exists():
        time.sleep(0.01)
    fetch(path, *rest)
vectors.fetch = late
saved = toy.load(told)
say(step=saved.state.step, wrong=toy.wrong(saved), told=told)
"""


def test_a_folder_that_disappears_between_check_and_read_is_passed_over(
    forker: "Forker", two: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(two, tmp_path / "run")
    (first,), (second,) = forker.run(VANISH, 2, run, "scattered")
    assert (first["step"], first["wrong"]) == (second["step"], second["wrong"]) == (2, "")
    (warning,) = first["told"]
    assert "step-00000003 was removed while it was read; the one before it is used" in warning


cuts = st.lists(st.integers(1, 59), max_size=12).map(lambda points: sorted({0, 60, *points}))


@settings(max_examples=60, deadline=None)
@given(cuts, cuts, st.randoms(use_true_random=False))
def test_overlaps_move_every_element_once(theirs: list[int], ours: list[int], dice: Any) -> None:
    """Law: stored pieces in any files and order, wanted ones in any order, against element by element."""
    stored = [(low, high - low) for low, high in pairwise(theirs)]
    files: list[list[Piece]] = [[], [], []]
    lengths = [0, 0, 0]
    for start, length in dice.sample(stored, len(stored)):
        file = dice.randrange(3)
        files[file].append(Piece(local=lengths[file], start=start, length=length))
        lengths[file] += length + dice.randrange(2)
    vectors = [np.full(length + 1, -1) for length in lengths]
    for file, pieces in enumerate(files):
        for piece in pieces:
            vectors[file][piece.local : piece.local + piece.length] = piece.start + np.arange(piece.length)
    wanted = [(low, high - low) for low, high in pairwise(ours) if dice.random() < 0.8]
    pieces, at = [], 0
    for start, length in dice.sample(wanted, len(wanted)):
        pieces.append(Piece(local=at, start=start, length=length))
        at += length
    flat = [(number, piece) for number, held in enumerate(files) for piece in held]
    flat.sort(key=lambda pair: pair[1].start)
    columns = [
        [number for number, _ in flat],
        *zip(*((one.local, one.start, one.length) for _, one in flat), strict=True),
    ]
    held = index.Pieces(
        **{
            name: np.array(column, np.int64)
            for name, column in zip(("files", "locals", "starts", "lengths"), columns, strict=True)
        }
    )
    mine = np.full(at, -1)
    for file, ranges in reader.overlaps(held, pieces).items():
        for place, offset, length in zip(ranges.places, ranges.offsets, ranges.lengths, strict=True):
            assert (mine[place : place + length] == -1).all()
            mine[place : place + length] = vectors[file][offset : offset + length]
    for piece in pieces:
        assert (mine[piece.local : piece.local + piece.length] == piece.start + np.arange(piece.length)).all()


def test_many_pieces_take_a_moment() -> None:
    """686 parameters on 1,024 ranks of ZeRO-3, read by one: no quadratic loop."""
    size, count, width = 1024, 686, 4096
    share = width // size
    ranks = np.repeat(np.arange(size), count)
    parameters = np.tile(np.arange(count), size)
    order = np.lexsort((ranks, parameters))
    stored = index.Pieces(
        files=ranks[order],
        locals=(parameters * share)[order],
        starts=(parameters * width + ranks * share)[order],
        lengths=np.full(size * count, share),
    )
    began = time.process_time()
    found = reader.overlaps(stored, [Piece(local=0, start=0, length=count * width)])
    assert time.process_time() - began < 5
    assert len(found) == size
    assert sum(int(ranges.lengths.sum()) for ranges in found.values()) == count * width
