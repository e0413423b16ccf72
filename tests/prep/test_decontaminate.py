import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.prep.buckets import Fit
from bigdiff.prep.decontaminate import (
    CAPTION,
    PICTURE,
    Outcome,
    Pictures,
    contaminated,
    files,
    fingerprint,
    normal,
    read,
    read_captions,
)
from bigdiff.prep.phash import distance, phash
from bigdiff.prep.picture import fitted
from bigdiff.runtime.workers import Workers

FAR = (0x00000000FFFFFFFF, 0x0F0F0F0F0F0F0F0F, 0x3333333333333333)
MAX = 1_000_000
SQUARE = Fit(shapes=((48, 48),))


@pytest.fixture
def base() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


def drawn(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "val" / "deep").mkdir(parents=True)
    drawn(0).save(tmp_path / "val" / "a.jpg", quality=90)
    drawn(1).save(tmp_path / "val" / "deep" / "B.PNG")
    drawn(2).save(tmp_path / "val" / "c.webp")
    Image.new("RGB", (40, 40), (9, 90, 200)).save(tmp_path / "val" / "flat.bmp")
    (tmp_path / "val" / "notes.md").write_text("no picture")
    (tmp_path / "val" / "link.jpg").symlink_to(tmp_path / "val" / "a.jpg")
    (tmp_path / "val" / "loop").symlink_to(tmp_path / "val")
    return tmp_path / "val"


def samples(base: duckdb.DuckDBPyConnection, rows: list[tuple[int, int, str]]) -> None:
    columns = zip(*rows, strict=True)
    kinds = {"row": pa.int64(), "phash": pa.int64(), "caption": pa.string()}
    given = {name: pa.array(column, kinds[name]) for name, column in zip(kinds, columns, strict=True)}
    base.register("given", pa.table(given))


def found(base: duckdb.DuckDBPyConnection) -> list[tuple[int, str, str]]:
    return base.execute("SELECT * FROM contaminated ORDER BY row").fetchall()


def test_a_sample_that_looks_like_an_evaluation_picture_is_found(base: duckdb.DuckDBPyConnection, folder: Path) -> None:
    with Workers(1) as workers:
        pictures = read(folder, SQUARE, MAX, workers)
    assert pictures.files == ("a.jpg", "c.webp", "deep/B.PNG", "flat.bmp")
    stored = fitted(drawn(1).resize((180, 120)), SQUARE)  # the same picture, once larger, as it would be stored
    flat = phash(Image.new("RGB", (48, 48), (9, 90, 200)))
    samples(base, [(5, phash(stored), "x"), (6, phash(fitted(drawn(7), SQUARE)), "y"), (7, flat, "z")])
    outcome = contaminated(base, "given", pictures, 4, None)
    assert found(base) == [(5, PICTURE, "deep/B.PNG")]
    assert outcome == Outcome(pictures=4, flat=1, captions=0, picture_rows=1, caption_rows=0)


@pytest.mark.parametrize("whole", [False, True])
def test_evaluation_pictures_are_fitted_as_the_set_s_are(folder: Path, whole: bool) -> None:
    with Workers(1) as workers:
        hashes = read(folder, Fit(shapes=((480, 480),), whole=whole), MAX, workers).hashes
        Image.new("RGB", (2_000, 1)).save(folder / "line.png")
        with pytest.raises(UsageError, match=r"line\.png cannot be read \(too long and narrow"):
            read(folder, Fit(shapes=((480, 480),), whole=whole), MAX, workers)
    all_of_it = drawn(1).resize((720, 480), Image.Resampling.BICUBIC)
    centre = all_of_it.crop((120, 0, 600, 480))
    same, other = (all_of_it, centre) if whole else (centre, all_of_it)
    assert distance(hashes[2], phash(same)) <= 2
    assert distance(hashes[2], phash(other)) > 10


def test_processes_change_nothing(folder: Path) -> None:
    for number in range(70):
        drawn(number).save(folder / f"more-{number}.jpg")
    with Workers(1) as one, Workers(2) as two:
        assert read(folder, SQUARE, MAX, one) == read(folder, SQUARE, MAX, two)


def test_the_nearest_is_named_then_the_first(base: duckdb.DuckDBPyConnection) -> None:
    pictures = Pictures(files=("far", "b", "a", "near"), hashes=(FAR[0] ^ 7, FAR[1], FAR[1], FAR[0] ^ 1))
    samples(base, [(0, FAR[0], ""), (1, FAR[1] ^ 1, ""), (2, FAR[2], ""), (3, FAR[0] ^ 0b111000, "")])
    outcome = contaminated(base, "given", pictures, 3, None)
    assert found(base) == [(0, PICTURE, "near"), (1, PICTURE, "a")]
    assert (outcome.picture_rows, outcome.caption_rows) == (2, 0)


def test_a_caption_is_found_whatever_its_case_and_marks(base: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("A dog, on a beach.\n\nTwo  caf\u00e9s\n")
    rows = ["a DOG on a\tbeach!!", "a dog on a beach at noon", "two cafe\u0301s", "...", "a dog-on a beach"]
    samples(base, [(number, FAR[0] if number else FAR[1], caption) for number, caption in enumerate(rows)])
    pictures = Pictures(files=("a",), hashes=(FAR[1],))
    outcome = contaminated(base, "given", pictures, 0, tmp_path / "c.txt")
    assert found(base) == [(0, PICTURE, "a"), (2, CAPTION, "Two  caf\u00e9s"), (4, CAPTION, "A dog, on a beach.")]
    assert outcome == Outcome(pictures=1, flat=0, captions=2, picture_rows=1, caption_rows=2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Stra\u00dfe", "STRASSE"),
        ("\uff21\uff22\uff23 \uff11", "abc 1"),
        ("soft\u00adhyphen", "softhyphen"),
        ("a\u00a0b\u3000c", "a b c"),
        ("\u201cquoted\u201d \u2014 text", "quoted text"),
        ("", "?! _ -"),
    ],
)
def test_normal_forms_are_equal(one: str, other: str) -> None:
    assert normal(one) == normal(other)
    assert normal(normal(one)) == normal(one)


def test_marks_of_a_script_are_letters_and_symbols_stay() -> None:
    assert normal("\u0915\u093f") != normal("\u0915\u093e")  # Devanagari ki, kaa
    assert normal("1 + 1") != normal("1 1")


def test_captions_come_from_tables_too(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('id,Caption\n1,"A dog, running"\n\n2,a cat\n')
    pq.write_table(pa.table({"n": [1, 2, 3], "TEXT": ["A dog, running", None, "a cat"]}), tmp_path / "c.parquet")
    assert read_captions(tmp_path / "c.csv") == read_captions(tmp_path / "c.parquet")
    assert read_captions(tmp_path / "c.csv") == {"a dog running": "A dog, running", "a cat": "a cat"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", b"[]", "c.json is not of a known kind: name a .txt, .csv or .parquet"),
        ("c.txt", b"...\n\n", "c.txt has no captions"),
        ("c.txt", b"\xff\xfe\x00", "c.txt cannot be read"),
        ("c.csv", b"id,words\n1,a\n", "c.csv has no column for captions"),
        ("c.csv", b"", "c.csv has no column for captions"),
        ("c.csv", b"id,caption\n1\n", r"c.csv, row 2 has 1 fields, the caption is number 2"),
        ("c.parquet", b"PAR1", "c.parquet cannot be read"),
    ],
)
def test_unusable_captions_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_captions(tmp_path / name)


def test_a_missing_file_of_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.txt cannot be read"):
        read_captions(tmp_path / "absent.txt")
    with pytest.raises(UsageError, match=r"absent\.txt is no file"):
        fingerprint(None, tmp_path / "absent.txt")


def test_unusable_pictures_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent is no folder"):
        files(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "link.jpg").symlink_to(folder / "a.jpg")
    with pytest.raises(UsageError, match="empty has no pictures"):
        files(tmp_path / "empty")
    (folder / "deep" / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    with Workers(1) as workers:
        with pytest.raises(UsageError, match=r"val/deep/cut.jpg cannot be read \(damaged or cut short\): mend it"):
            read(folder, SQUARE, MAX, workers)
        (folder / "deep" / "cut.jpg").unlink()
        with pytest.raises(UsageError, match=r"a.jpg cannot be read \(more than pack.max_pixels\)"):
            read(folder, SQUARE, 100, workers)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_closed_folder_is_refused(folder: Path) -> None:
    (folder / "deep").chmod(0)
    with pytest.raises(UsageError, match="deep cannot be listed"):
        files(folder)
    (folder / "deep").chmod(0o755)


def test_the_fingerprint_is_of_names_and_bytes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a dog\n")
    first = fingerprint(folder, tmp_path / "c.txt")
    assert first["evaluation_captions"] == hashlib.sha256(b"a dog\n").hexdigest()
    assert fingerprint(None, None) == {}
    (folder / "notes.md").write_text("not compared")
    assert fingerprint(folder, None) == {"evaluation_pictures": first["evaluation_pictures"]}
    (folder / "c.webp").rename(folder / "d.webp")
    renamed = fingerprint(folder, None)["evaluation_pictures"]
    drawn(3).save(folder / "d.webp")
    changed = fingerprint(folder, None)["evaluation_pictures"]
    assert len({first["evaluation_pictures"], renamed, changed}) == 3
