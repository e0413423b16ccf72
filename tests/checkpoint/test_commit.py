import json
import math
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bigdiff.checkpoint import index, layout, reader
from bigdiff.checkpoint.commit import Attempt, GivenUp, commit, records
from bigdiff.checkpoint.content import Content
from bigdiff.checkpoint.index import File
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.errors import RunError
from bigdiff.engine.partition import Partition, Piece, dense
from bigdiff.runtime.files import sha256, write_json

SIZE = 12


def never() -> float:
    return math.inf


def write(aside: Path, rank: int) -> File:
    """A share of one weight, and its record."""
    path = aside / layout.shard(rank, SIZE)
    path.write_bytes(b"share %d" % rank)
    file = File(name=path.name, bytes=path.stat().st_size, sha256=sha256(path))
    write_json(aside / layout.record(rank, SIZE), asdict(file))
    return file


def test_records_are_waited_for_in_any_order(tmp_path: Path) -> None:
    def others() -> None:
        for rank in reversed(range(SIZE)):
            time.sleep(0.02)
            write(tmp_path, rank)

    thread = threading.Thread(target=others)
    thread.start()
    files = records(tmp_path, SIZE, 60, never)
    thread.join()
    assert [file.name for file in files] == [layout.shard(rank, SIZE) for rank in range(SIZE)]


def test_missing_ranks_are_named_when_the_time_is_over(tmp_path: Path) -> None:
    write(tmp_path, 5)
    with pytest.raises(
        RunError, match=r"rank 0, 1, 2, 3, 4, 6, 7, 8 and 3 more of 12 had not written .* within 0\.1 s"
    ):
        records(tmp_path, SIZE, 0.1, never)
    for rank in range(SIZE - 1):
        write(tmp_path, rank)
    (tmp_path / layout.shard(3, SIZE)).write_bytes(b"cut")
    with pytest.raises(RunError, match="rank 3, 11 of 12 had not written"):
        records(tmp_path, SIZE, 0.1, never)


def test_a_run_that_ends_is_not_held_up(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(GivenUp):
        records(tmp_path, SIZE, 60, lambda: began + 0.2)
    assert 0.2 <= time.monotonic() - began < 5
    for rank in range(SIZE):
        write(tmp_path, rank)
    assert len(records(tmp_path, SIZE, 60, lambda: -math.inf)) == SIZE  # what is there already is taken


def attempt(run: Path, mark: str, loss: float | None) -> Attempt:
    final = layout.checkpoint(run, 3)
    masters = (torch.zeros(SIZE),)
    places = dense([("a", (SIZE,))])
    return Attempt(
        final=final,
        aside=layout.aside(final, layout.WRITING, mark),
        content=Content(
            partition=Partition(layout=places, pieces=(), masters=masters),
            tensors={"exp_avg": ()},
            state=TrainState(step=3, samples_seen=12),
            identity=Identity(seed=0, manifest="m", total=4, order="o"),
            about={"mark": mark},
            loss=loss,
        ),
        mark=mark,
    )


@pytest.mark.parametrize(("loss", "kept"), [(0.5, 0.5), (math.nan, None), (math.inf, None), (None, None)])
def test_a_commit_is_whole_and_replaces_what_had_its_name(
    tmp_path: Path, loss: float | None, kept: float | None
) -> None:
    pieces = index.packed([index.table([Piece(local=0, start=rank, length=1)]) for rank in range(SIZE)])
    for mark in ("first", "second"):
        one = attempt(tmp_path, mark, loss)
        one.aside.mkdir(parents=True)
        commit(one, [write(one.aside, rank) for rank in range(SIZE)], pieces)
        assert [path.name for path in layout.checkpoints(tmp_path).iterdir()] == ["step-00000003"]
        assert reader.damaged(one.final) == ""
        found = reader.read_index(one.final)
        assert (found.about, found.loss, found.vectors) == ({"mark": mark}, kept, ("master", "exp_avg"))
        names = {layout.shard(rank, SIZE) for rank in range(SIZE)} | {layout.INDEX, layout.PIECES}
        assert {path.name for path in one.final.iterdir()} == names
        assert json.loads((one.final / layout.INDEX).read_text())["format"] == 3
