import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bigdiff.checkpoint import layout, store
from bigdiff.config.errors import RunError, UsageError

# A flat vector of 23 elements over two parameters; each rank of N owns an aligned slice, the last one with padding.
SCRIPT = """
import json, sys, torch
from pathlib import Path
from bigdiff.checkpoint import store
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.engine.partition import Partition, dense, owned
from bigdiff.runtime.world import enter, leave
what, run, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
w = enter(60)
places = dense([("a", (3, 5)), ("b", (8,))])
share = -(-24 // w.size)
flat = torch.zeros(share * w.size)
flat[:23] = torch.arange(23.0) + step
mine = flat[w.rank * share:(w.rank + 1) * share].clone()
pieces = owned(places, [0, 15], w.rank * share, (w.rank + 1) * share)
partition = Partition(layout=places, pieces=pieces, masters=(mine,))
told = []
if what == "save":
    tensors = {"exp_avg": (mine * 2,), "exp_avg_sq": (mine * 3,), "ema": (mine * 4,)}
    content = store.Content(partition=partition, tensors=tensors, state=TrainState(step=step, samples_seen=10 * step),
                            identity=Identity(seed=1, manifest="m", total=4, order="o"), about={"stage": "toy"})
    store.save(run, w, content, keep=2)
else:
    got = store.load(run, w, partition, told.append)
    if got is None:
        print(json.dumps({"none": True}))
    else:
        print(json.dumps({"step": got.state.step, "samples": got.state.samples_seen, "seed": got.identity.seed,
                          "told": told, **{n: t.tolist() for n, t in got.vectors.items()}}))
leave()
"""
Ranks = Callable[..., list[str]]


def loaded(run_ranks: Ranks, run: Path, size: int) -> list[dict[str, object]]:
    return [json.loads(output.splitlines()[-1]) for output in run_ranks(SCRIPT, size, "load", str(run), "0")]


@pytest.mark.parametrize(("saved", "read"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_any_number_of_ranks_loads_what_any_other_saved(
    run_ranks: Ranks, tmp_path: Path, saved: int, read: int
) -> None:
    run_ranks(SCRIPT, saved, "save", str(tmp_path), "7")
    told = loaded(run_ranks, tmp_path, read)
    for name, factor in (("master", 1), ("exp_avg", 2), ("exp_avg_sq", 3), ("ema", 4)):
        flat = [value for one in told for value in one[name]]  # type: ignore[attr-defined]
        assert flat[:23] == [factor * (index + 7.0) for index in range(23)]
        assert set(flat[23:]) <= {0.0}
    assert {one["step"] for one in told} == {7}
    assert {one["samples"] for one in told} == {70}
    raw, ema = (store.read_weights(layout.checkpoint(tmp_path, 7), which) for which in ("raw", "ema"))
    assert torch.equal(raw["a"], (torch.arange(15.0) + 7).reshape(3, 5))
    assert torch.equal(ema["b"], 4 * (torch.arange(15.0, 23.0) + 7))


def test_damage_is_noticed_and_the_one_before_is_used(run_ranks: Ranks, tmp_path: Path) -> None:
    assert loaded(run_ranks, tmp_path, 1) == [{"none": True}]
    for step in (1, 2, 3):
        run_ranks(SCRIPT, 2, "save", str(tmp_path), str(step))
    assert [layout.step_of(folder) for folder in layout.saved(tmp_path)] == [3, 2]  # keep=2
    newest = layout.checkpoint(tmp_path, 3) / layout.shard(1, 2)
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    told = loaded(run_ranks, tmp_path, 2)
    assert [one["step"] for one in told] == [2, 2]
    assert newest.name in told[0]["told"][0]  # type: ignore[index]
    with pytest.raises(UsageError, match="sha256"):
        store.read_weights(layout.checkpoint(tmp_path, 3), "raw")
    run_ranks(SCRIPT, 1, "save", str(tmp_path), "3")  # saving over the damaged one replaces it
    assert [one["step"] for one in loaded(run_ranks, tmp_path, 1)] == [3]


def test_truncated_and_missing_files_are_named(run_ranks: Ranks, tmp_path: Path) -> None:
    run_ranks(SCRIPT, 2, "save", str(tmp_path), "1")
    folder = layout.checkpoint(tmp_path, 1)
    assert store.damaged(folder) == ""
    first, second = (folder / layout.shard(rank, 2) for rank in (0, 1))
    first.write_bytes(first.read_bytes()[:-1])
    assert first.name in store.damaged(folder)
    assert store.damaged(folder, 1, 2) == ""  # each rank looks at its own share of the files
    second.unlink()
    assert "missing" in store.damaged(folder, 1, 2)


def test_a_world_without_a_good_checkpoint_says_so(tmp_path: Path) -> None:
    folder = layout.checkpoint(tmp_path, 1)
    folder.mkdir(parents=True)
    (folder / layout.INDEX).write_text("not json")
    assert "cannot be read" in store.damaged(folder)
    with pytest.raises(UsageError, match="not a checkpoint"):
        store.read_index(folder)


def test_all_damaged_is_an_error_not_a_fresh_start(run_ranks: Ranks, tmp_path: Path) -> None:
    run_ranks(SCRIPT, 1, "save", str(tmp_path), "1")
    (layout.checkpoint(tmp_path, 1) / layout.shard(0, 1)).write_bytes(b"")
    with pytest.raises(AssertionError, match=RunError.__name__):
        loaded(run_ranks, tmp_path, 1)
