"""Weights that go by name from one run's flat vector into another's, element by element, whoever owns them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.checkpoint import frozen, layout
from bigdiff.checkpoint.index import File, Index
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.engine.partition import Partition, Piece, dense, owned
from bigdiff.train.regrouped import Around, fill, pieces, rest, same

Shapes = dict[str, tuple[int, ...]]
UNET: Shapes = {"unet.a": (3, 5), "unet.b": (), "unet.c": (7,)}
TEXT: Shapes = {"text_encoder.x": (2, 2), "text_encoder.y": (3,)}
NOTHING = File(name="", bytes=0, sha256="")
SHAPES = st.dictionaries(
    st.sampled_from("abcdefgh"), st.sampled_from([(), (1,), (5,), (2, 3), (4, 1, 2)]), min_size=1, max_size=8
)


def indexed(shapes: Shapes, digest: str = "") -> Index:
    """The index of a checkpoint with these trained parameters."""
    return Index(
        state=TrainState(step=4, samples_seen=32),
        identity=Identity(seed=0, manifest="m", total=8, order="o", frozen=digest),
        layout=dense(shapes.items()),
        vectors=("master",),
        files=(),
        pieces=NOTHING,
        loss=None,
        about={},
    )


def partition(shapes: Shapes, rank: int, size: int, order: list[str], padding: int) -> Partition:
    """What a rank owns of a vector in which the parameters lie in another order, with padding at the end."""
    places, offsets, at = dense(shapes.items()), {}, 0
    for name in order:
        offsets[name], at = at, at + torch.Size(shapes[name]).numel()
    share = -(-at // size) + padding
    found = owned(places, [offsets[one.name] for one in places], rank * share, (rank + 1) * share)
    return Partition(layout=places, pieces=found, masters=(torch.zeros(share),))


def whole(shapes: Shapes) -> Partition:
    return partition(shapes, 0, 1, list(shapes), 0)


def numbered(shapes: Shapes, first: int) -> dict[str, torch.Tensor]:
    """Other values than 0 for every element of every parameter."""
    found = {}
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        found[name] = torch.arange(first, first + count).float().reshape(shape)
        first += count
    return found


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([one.flatten() for one in values.values()])


@settings(deadline=None, max_examples=150)
@given(ours=SHAPES, theirs=st.sets(st.sampled_from("abcdefgh")), data=st.data())
def test_all_ranks_together_get_every_element_once_in_its_place(
    ours: Shapes, theirs: set[str], data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, 4))
    order, padding = data.draw(st.permutations(list(ours))), data.draw(st.integers(0, 3))
    there = {name: ours.get(name, (2, 2)) for name in data.draw(st.permutations(sorted(theirs)))}
    stored, others = numbered(there, 1), numbered(ours, 1000)
    old = flat(stored) if there else torch.zeros(0)
    seen = []
    for rank in range(size):
        mine = partition(ours, rank, size, order, padding)
        local = torch.zeros(mine.length)
        for piece in pieces(indexed(there), mine):
            local[piece.local : piece.local + piece.length] = old[piece.start : piece.start + piece.length]
        fill(local, mine, {name: one for name, one in others.items() if name not in there})
        wanted, expected = flat({name: stored.get(name, others[name]) for name in ours}), torch.zeros(mine.length)
        for piece in mine.pieces:
            expected[piece.local : piece.local + piece.length] = wanted[piece.start : piece.start + piece.length]
        assert torch.equal(local, expected)  # and zeros where no piece lies
        seen += local[local != 0].tolist()
    assert sorted(seen) == sorted(wanted.tolist())


def test_only_what_both_hold_is_read() -> None:
    theirs: Shapes = {"b": (4,), "x": (9,), "a": (2,)}
    ours: Shapes = {"a": (2,), "new": (3,), "b": (4,)}
    assert pieces(indexed(theirs), whole(ours)) == [
        Piece(local=0, start=13, length=2),
        Piece(local=5, start=0, length=4),
    ]
    assert pieces(indexed({"x": (9,)}), whole(ours)) == []


def test_the_same_is_the_same_names_shapes_and_order() -> None:
    ours = whole(UNET)
    assert same(indexed(UNET), ours)
    assert not same(indexed(dict(reversed(UNET.items()))), ours)
    assert not same(indexed(UNET | TEXT), ours)
    assert not same(indexed(UNET | {"unet.c": (1, 7)}), ours)


def run_before(runs: Path, trained: Shapes, kept: Shapes) -> tuple[Path, Index]:
    """A checkpoint's folder and index, with the run's frozen weights beside it."""
    run = runs / "first"
    return layout.checkpoint(run, 4), indexed(trained, frozen.write(run, numbered(kept, 50)))


def stage(*overrides: str) -> Stage:
    return load_stage("512px", ["init_from=first", *overrides])


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], one) for name, one in expected.items())


def test_what_the_checkpoint_lacks_comes_from_the_frozen_file_or_from_where_the_stage_loads_it(tmp_path: Path) -> None:
    kept = {"unet.a": UNET["unet.a"]}
    folder, found = run_before(tmp_path, {name: UNET[name] for name in ("unet.b", "unet.c")}, kept)
    loaded = numbered(TEXT, 500)
    around = Around(kept={"unet.c"}, loaded=loaded)
    ours = {"unet.a": UNET["unet.a"], "unet.b": UNET["unet.b"], **TEXT}
    assert equal(rest(stage(), folder, found, whole(ours), around), {**numbered(kept, 50), **loaded})


def test_a_text_encoder_of_the_run_before_goes_before_the_one_that_is_loaded(tmp_path: Path) -> None:
    folder, found = run_before(tmp_path, UNET, TEXT)
    around = Around(kept=set(), loaded=numbered(TEXT, 500))
    assert equal(rest(stage(), folder, found, whole(UNET | TEXT), around), numbered(TEXT, 50))
    half, found = run_before(tmp_path / "half", UNET, {"text_encoder.x": (2, 2)})
    assert "(text_encoder.y differs)" in refusal(stage(), half, found, UNET | TEXT, around)


def refusal(chosen: Stage, folder: Path, found: Index, ours: Shapes, around: Around) -> str:
    with pytest.raises(UsageError) as caught:
        rest(chosen, folder, found, whole(ours), around)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (UNET | {"unet.also": (2,), "unet.kept": (2,)}, "unet.also"),  # nobody has it
        (UNET | {"unet.c": (1, 7)}, "unet.c"),  # another shape of what was trained
        (UNET | {"unet.kept": (4,)}, "unet.kept"),  # and of what was frozen
        ({"unet.a": (3, 5), "unet.b": (), "unet.kept": (2,)}, "unet.c"),  # it would be lost
        (UNET, "unet.kept"),  # that, too
    ],
)
def test_another_network_is_refused(tmp_path: Path, ours: Shapes, name: str) -> None:
    folder, found = run_before(tmp_path, UNET, {"unet.kept": (2,)})
    sentence = refusal(stage(), folder, found, ours, Around(kept=set(), loaded={}))
    assert sentence == f"{folder} holds another network than this stage's model ({name} differs)"
    assert rest(stage(), folder, found, whole(UNET), Around(kept={"unet.kept"}, loaded={})) == {}


@pytest.mark.parametrize("key", ["init_ema", "init_optimizer"])
def test_averages_and_moments_go_over_between_the_same_parameters_in_whatever_order(tmp_path: Path, key: str) -> None:
    folder, found = run_before(tmp_path, UNET, {"unet.kept": (2,)})
    taking = stage(f"{key}=true")
    more = refusal(taking, folder, found, UNET | {"unet.kept": (2,)}, Around(kept=set(), loaded={}))
    assert more == (
        f"{key}=true, but {folder} trained other parameters (unet.kept is in one of the two): the weights alone can be "
        f"taken over"
    )
    moved = dict(reversed(UNET.items()))
    assert rest(taking, folder, found, whole(moved), Around(kept={"unet.kept"}, loaded={})) == {}


def test_frozen_weights_that_are_gone_are_refused(tmp_path: Path) -> None:
    folder, found = run_before(tmp_path, UNET, TEXT)
    (folder.parents[1] / frozen.NAME).unlink()
    assert "frozen.safetensors is absent" in refusal(stage(), folder, found, UNET | TEXT, Around(kept=set(), loaded={}))
