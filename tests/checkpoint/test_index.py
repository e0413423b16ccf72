import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bigdiff.checkpoint import index, layout
from bigdiff.checkpoint.index import Damage, File, Index
from bigdiff.checkpoint.state import Identity, TrainState, Window
from bigdiff.config.errors import UsageError
from bigdiff.engine.partition import Piece, dense

TABLES = [
    [Piece(local=0, start=4, length=6)],
    [Piece(local=1, start=0, length=4), Piece(local=5, start=10, length=3)],
]
INDEX = Index(
    state=TrainState(step=3, samples_seen=12, skipped=(Window(begin=1, end=2, reason="spike"),)),
    identity=Identity(seed=0, manifest="ab", total=4, order="o"),
    layout=dense([("unet.a", (2, 3)), ("ü", (7,))]),
    vectors=("master", "ema/0.9"),
    files=(File(name="rank-0", bytes=3, sha256=hashlib.sha256(b"abc").hexdigest()),) * 2,
    pieces=File(name=layout.PIECES, bytes=0, sha256=""),
    loss=0.1,
    about={"stage": "toy"},
)


def test_round_trip_and_the_same_bytes(tmp_path: Path) -> None:
    for loss in (0.1, 1e-300, None):
        index.write(tmp_path, replace(INDEX, loss=loss))
        assert index.read(tmp_path) == replace(INDEX, loss=loss)
    first = (tmp_path / layout.INDEX).read_bytes()
    index.write(tmp_path, replace(INDEX, loss=None))
    assert (tmp_path / layout.INDEX).read_bytes() == first
    assert INDEX.total == 13


def test_every_single_bit_is_covered(tmp_path: Path) -> None:
    """A flipped bit is damage, or changes nothing (white space), but never another meaning."""
    index.write(tmp_path, INDEX)
    file, noticed = tmp_path / layout.INDEX, 0
    content = file.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        try:
            assert index.read(tmp_path) == INDEX
        except Damage:
            noticed += 1
    assert noticed > 0.9 * len(content)


def test_formats_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / layout.INDEX
    file.write_text(json.dumps({"format": 1, "state": {"step": 3}}))
    with pytest.raises(
        UsageError, match=r"has format 1 of an earlier version, this one reads 3: train that stage again"
    ):
        index.read(tmp_path)
    later = {"format": 4, "news": True}
    digest = hashlib.sha256(json.dumps(later, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    file.write_text(json.dumps({**later, "sha256": digest}))
    with pytest.raises(UsageError, match=r"has format 4, this version reads 3: use the version that wrote it"):
        index.read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"[1]", b"3", b"{}", b'{"format": 3}', b"\xff", b'{"sha256": ""}']
)
def test_what_is_no_index_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / layout.INDEX).write_bytes(content)
    with pytest.raises(Damage, match=layout.INDEX):
        index.read(tmp_path)


def test_a_file_is_checked_by_size_and_sum(tmp_path: Path) -> None:
    (file, _), path = INDEX.files, tmp_path / "rank-0"
    with pytest.raises(Damage, match="rank-0 is missing"):
        index.check(tmp_path, file)
    path.write_bytes(b"abcd")
    with pytest.raises(Damage, match="rank-0 has 4 bytes instead of 3"):
        index.check(tmp_path, file)
    path.write_bytes(b"abd")
    with pytest.raises(Damage, match="rank-0 does not have its recorded sha256"):
        index.check(tmp_path, file)
    path.write_bytes(b"abc")
    index.check(tmp_path, file)


def test_pieces_come_back_in_the_order_of_the_flat_vector(tmp_path: Path) -> None:
    file = index.write_pieces(tmp_path, index.packed([index.table(pieces) for pieces in TABLES]))
    found = index.read_pieces(tmp_path, replace(INDEX, pieces=file))
    assert found.files.tolist() == [1, 0, 1]
    assert found.locals.tolist() == [1, 0, 5]
    assert found.starts.tolist() == [0, 4, 10]
    assert found.lengths.tolist() == [4, 6, 3]


@pytest.mark.parametrize(
    "tables",
    [
        TABLES[:1],  # a hole at the begin
        [TABLES[0], [Piece(local=0, start=0, length=4)]],  # and at the end
        [TABLES[0], [Piece(local=0, start=0, length=5), Piece(local=5, start=10, length=3)]],  # twice
    ],
)
def test_pieces_that_are_not_the_whole_once_are_damage(tmp_path: Path, tables: list[list[Piece]]) -> None:
    file = index.write_pieces(tmp_path, index.packed([index.table(pieces) for pieces in tables]))
    with pytest.raises(Damage, match="does not cover every weight once"):
        index.read_pieces(tmp_path, replace(INDEX, pieces=file))


def test_a_rank_may_own_nothing(tmp_path: Path) -> None:
    assert index.table([]).shape == (0, 3)
    whole = [Piece(local=0, start=0, length=13)]
    file = index.write_pieces(tmp_path, index.packed([index.table([]), index.table(whole)]))
    found = index.read_pieces(tmp_path, replace(INDEX, pieces=file))
    assert np.array_equal(found.files, [1])
