import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.checkpoint import index, layout, retention
from bigdiff.checkpoint.index import File, Index
from bigdiff.checkpoint.retention import Past, kept
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.schema import Checkpoint
from bigdiff.engine.partition import Placed


def past(*steps: int, **losses: float) -> list[Past]:
    return [Past(step=step, loss=losses.get(f"s{step}")) for step in steps]


@pytest.mark.parametrize(
    ("rules", "steps"),
    [
        ({"keep": 1}, {60}),
        ({"keep": 2}, {60, 50}),
        ({"keep": 9}, {10, 20, 30, 40, 50, 60}),
        ({"keep": 1, "keep_every": 20}, {20, 40, 60}),
        ({"keep": 1, "keep_best": True}, {30, 60}),
        ({"keep": 2, "keep_every": 40, "keep_best": True}, {30, 40, 50, 60}),
    ],
)
def test_the_newest_the_milestones_and_the_best_stay(rules: dict[str, int], steps: set[int]) -> None:
    found = past(30, 60, 10, 20, 40, 50, s10=0.5, s20=float("nan"), s30=0.2, s40=0.3, s60=float("inf"))
    assert kept(found, Checkpoint(every=10, **rules)) == steps  # type: ignore[arg-type]


def test_of_equally_good_ones_the_newer_stays_and_of_none_known_none() -> None:
    best = Checkpoint(keep=1, keep_best=True)
    assert kept(past(1, 2, 3, s1=0.2, s2=0.2, s3=0.4), best) == {2, 3}
    assert kept(past(1, 2, 3), best) == {3}
    assert kept([], best) == set()


losses = st.none() | st.floats(allow_nan=True, allow_infinity=True)
pasts = st.dictionaries(st.integers(1, 99), losses).map(lambda one: [Past(step=s, loss=x) for s, x in one.items()])


@given(pasts, st.integers(1, 5), st.sampled_from([0, 10, 30]), st.booleans())
def test_laws(found: list[Past], keep: int, milestone: int, best: bool) -> None:
    """The newest stays; keeping is stable: applied again to what stayed, all of it stays."""
    rules = Checkpoint(every=10, keep=keep, keep_every=milestone, keep_best=best)
    staying = kept(found, rules)
    assert staying <= {one.step for one in found}
    assert not found or max(one.step for one in found) in staying
    assert kept([one for one in found if one.step in staying], rules) == staying


def made(run: Path, step: int, loss: float | None = None) -> Path:
    folder = layout.checkpoint(run, step)
    folder.mkdir(parents=True)
    (folder / "rank").write_bytes(b"x")
    file = File(name="rank", bytes=1, sha256="")
    written = Index(
        state=TrainState(step=step, samples_seen=0),
        identity=Identity(seed=0, manifest="", total=1, order=""),
        layout=(Placed(name="a", shape=(1,), offset=0),),
        vectors=("master",),
        files=(file,),
        pieces=file,
        loss=loss,
        about={},
    )
    index.write(folder, written)
    return folder


def steps(run: Path) -> list[int]:
    return [layout.step_of(folder) for folder in layout.saved(run)]


def test_what_does_not_stay_goes_and_leaves_nothing(tmp_path: Path) -> None:
    for step, loss in ((10, 0.3), (20, 0.1), (30, None), (40, 0.2)):
        made(tmp_path, step, loss)
    damaged = made(tmp_path, 35, 0.05)
    (damaged / layout.INDEX).write_text("{")
    retention.apply(tmp_path, Checkpoint(keep=2, keep_best=True), 40, "mark")
    assert steps(tmp_path) == [40, 35, 20]
    assert len(list(layout.checkpoints(tmp_path).iterdir())) == 3


def test_a_later_one_drives_none_out(tmp_path: Path) -> None:
    """It was found damaged and passed over: if it counted, what was made after it would go at once."""
    for step in (10, 20, 30, 90):
        made(tmp_path, step)
    retention.apply(tmp_path, Checkpoint(keep=1), 30, "mark")
    assert steps(tmp_path) == [90, 30]


def test_a_reader_keeps_the_file_it_has_open(tmp_path: Path) -> None:
    folder = made(tmp_path, 10)
    with (folder / "rank").open("rb") as stream:
        retention.remove(folder, "mark")
        assert not folder.exists()
        assert stream.read() == b"x"
    retention.remove(folder, "mark")  # gone already, by another life: nothing to do


def test_a_life_clears_what_earlier_ones_left(tmp_path: Path) -> None:
    whole, other = made(tmp_path, 20), made(tmp_path, 10)
    for step, prefix in ((30, layout.WRITING), (40, layout.REMOVING), (10, layout.REPLACED), (15, layout.REPLACED)):
        folder = other if step == 10 else made(tmp_path, step)
        shutil.copytree(folder, layout.aside(folder, prefix, "ab12-1"))
        if step != 10:
            shutil.rmtree(folder)
    (layout.checkpoints(tmp_path) / f"{layout.PROBE}ab12-0").touch()
    (layout.checkpoints(tmp_path) / "mine.txt").touch()
    retention.clear(tmp_path)
    # the one that was moved away for a replacement which never came has its name again
    names = {path.name for path in layout.checkpoints(tmp_path).iterdir()}
    assert names == {whole.name, other.name, layout.checkpoint(tmp_path, 15).name, "mine.txt"}
    retention.clear(tmp_path / "none")
