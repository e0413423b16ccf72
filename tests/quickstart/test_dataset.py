import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import mmh3
import pyarrow.parquet as pq

from bigdiff.quickstart.dataset import META, METADATA, SOURCE, Options, draw, metadata, rows
from bigdiff.quickstart.faults import AWKWARD, FAULTY, SOUND, fewer

SMALL = Options(count=60, size=32, awkward=fewer(AWKWARD, 2), faulty=fewer(FAULTY, 2))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_planted_numbers() -> None:
    kinds = Counter(row.kind for row in rows(Options()))
    assert kinds[SOUND] + sum(kind.count for kind in AWKWARD) == Options().count
    assert all(kinds[kind.name] == kind.count for kind in (*AWKWARD, *FAULTY))


def test_each_row_shows_a_scene_of_its_own_but_for_the_duplicates() -> None:
    made = rows(Options())
    scenes = Counter(row.scene for row in made)
    doubled = {row.scene for row in made if row.kind.startswith("duplicate")}
    assert {scene for scene, count in scenes.items() if count > 1} == doubled
    assert max(scenes.values()) == 2


def test_a_faulty_row_breaks_the_rule_of_its_kind_and_no_other() -> None:
    made = rows(SMALL)
    table = metadata(made, SMALL)
    for row, low, mark, unsafe, language, width in zip(
        made,
        (score <= 5 for score in table["AESTHETIC_SCORE"]),
        (score >= 0.5 for score in table["pwatermark"]),
        (score >= 0.5 for score in table["punsafe"]),
        (name != "en" for name in table["LANGUAGE"]),
        (width < 64 for width in metadata(made, replace(SMALL, size=96))["WIDTH"]),
        strict=True,
    ):
        broken = {"low_scored": low, "watermarked": mark, "unsafe": unsafe, "other_language": language, "small": width}
        assert {kind for kind, value in broken.items() if value} == {row.kind} & set(broken)


def test_laions_columns_and_hash() -> None:
    table = metadata(rows(SMALL), SMALL)
    assert list(table) == [
        "URL",
        "TEXT",
        "WIDTH",
        "HEIGHT",
        "similarity",
        "hash",
        "punsafe",
        "pwatermark",
        "AESTHETIC_SCORE",
        "LANGUAGE",
    ]
    assert table["hash"][3] == mmh3.hash64((table["URL"][3] + table["TEXT"][3]).encode())[0]
    assert len(set(table["URL"])) == len(table["URL"]) - 2  # two duplicate URLs


def test_the_same_bytes_for_any_number_of_processes_and_nothing_is_drawn_twice(tmp_path: Path) -> None:
    draw(tmp_path / "one", SMALL, processes=1)
    draw(tmp_path / "two", SMALL, processes=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    before = (tmp_path / "one" / SOURCE / "pictures.bin").stat().st_mtime_ns
    draw(tmp_path / "one", SMALL)
    assert (tmp_path / "one" / SOURCE / "pictures.bin").stat().st_mtime_ns == before
    draw(tmp_path / "one", replace(SMALL, seed=1), processes=1)
    assert digests(tmp_path / "one") != digests(tmp_path / "two")
    assert pq.read_metadata(tmp_path / "one" / META / METADATA).num_rows == len(rows(SMALL))
