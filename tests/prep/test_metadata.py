from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Columns, Select, load_prep
from bigdiff.prep import metadata
from bigdiff.prep.metadata import COLUMNS, TYPES, Source
from bigdiff.prep.rules import rules

LAION = "URL TEXT WIDTH HEIGHT similarity hash punsafe pwatermark AESTHETIC_SCORE LANGUAGE"
OURS = "url caption width height similarity hash punsafe pwatermark aesthetic language"
COYO = (
    "id url text width height image_phash text_length word_count num_tokens_bert num_tokens_gpt num_faces "
    "clip_similarity_vitb32 clip_similarity_vitl14 nsfw_score_opennsfw2 nsfw_score_gantman watermark_score "
    "aesthetic_score_laion_v2"
)
DATACOMP = (
    "uid url text original_width original_height clip_b32_similarity_score clip_l14_similarity_score face_bboxes sha256"
)
TEXTS = {"url", "text", "caption", "language", "top_caption", "uid", "sha256", "image_phash", "key", "status"}


def write(file: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def release(file: Path, names: str) -> Path:
    """A file of one row that has a release's columns."""
    return write(file, {name: ["x"] if name.lower() in TEXTS else [0.5] for name in names.split()})


def read(files: tuple[Path, ...], select: Select | None = None) -> tuple[Source, ...]:
    chosen = select or Select()
    with duckdb.connect() as base:
        return metadata.sources(base, files, rules(chosen, False), chosen.columns)


def test_every_column_of_ours_has_a_type_and_can_be_named() -> None:
    assert COLUMNS.keys() == TYPES.keys() == {*Columns.__dataclass_fields__}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (LAION, dict(zip(OURS.split(), LAION.split(), strict=True))),
        (LAION.lower(), dict(zip(OURS.split(), LAION.lower().split(), strict=True))),
        (
            "SAMPLE_ID URL TEXT HEIGHT WIDTH LICENSE NSFW similarity",
            {"url": "URL", "caption": "TEXT", "width": "WIDTH", "height": "HEIGHT", "similarity": "similarity"},
        ),
        (
            COYO,
            {
                "url": "url",
                "caption": "text",
                "width": "width",
                "height": "height",
                "similarity": "clip_similarity_vitb32",
                "aesthetic": "aesthetic_score_laion_v2",
            },
        ),
        (
            DATACOMP,
            {
                "url": "url",
                "caption": "text",
                "width": "original_width",
                "height": "original_height",
                "similarity": "clip_b32_similarity_score",
            },
        ),
        (
            "url caption key status width height original_width original_height sha256",  # of img2dataset
            {"url": "url", "caption": "caption", "width": "original_width", "height": "original_height"},
        ),
        ("URL top_caption all_captions punsafe", {"url": "URL", "caption": "top_caption", "punsafe": "punsafe"}),
    ],
)
def test_the_releases_columns(names: str, found: dict[str, str], tmp_path: Path) -> None:
    (source,) = read((release(tmp_path / "a.parquet", names),))
    assert {ours: column.name for ours, column in source.columns.items()} == found


@pytest.mark.parametrize("name", ["coyo-700m", "datacomp"])
def test_scores_of_other_detectors_are_read_only_where_they_are_named(name: str, tmp_path: Path) -> None:
    file = release(tmp_path / "a.parquet", COYO if name == "coyo-700m" else DATACOMP)
    (plain,) = read((file,))
    assert "punsafe" not in plain.columns
    assert "pwatermark" not in plain.columns
    assert "l14" not in plain.columns["similarity"].name
    (asked,) = read((file,), load_prep(name).select)
    assert "l14" in asked.columns["similarity"].name
    assert "punsafe" not in asked.columns
    assert [each for each in metadata.notes((asked,), load_prep(name).select.columns) if "l14" in each] == [
        f"similarity is read from {asked.columns['similarity'].name} (select.columns.similarity)"
    ]
    with pytest.raises(UsageError, match=r"no column for punsafe.*select\.columns\.punsafe"):
        read((file,), Select(punsafe_below=0.1))
    if name == "coyo-700m":
        named = Select(punsafe_below=0.1, columns=Columns(punsafe="NSFW_score_gantman"))
        assert read((file,), named)[0].columns["punsafe"].name == "nsfw_score_gantman"


def test_a_column_that_was_named_and_is_not_there(tmp_path: Path) -> None:
    file = release(tmp_path / "a.parquet", "url text")
    with pytest.raises(UsageError, match=r"no column 'LINK': correct select\.columns\.url"):
        read((file,), Select(columns=Columns(url="LINK")))


def test_naming_one_of_two_that_are_read_as_the_same(tmp_path: Path) -> None:
    file = release(tmp_path / "a.parquet", "URL TEXT top_caption")
    with pytest.raises(UsageError, match=r"TEXT and top_caption, both read as caption: .*select\.columns\.caption"):
        read((file,))
    (source,) = read((file,), Select(columns=Columns(caption="TOP_CAPTION")))
    assert source.columns["caption"].name == "top_caption"


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"URL": [["http://example.com/a"]], "TEXT": ["a"]}, r"URL is of type VARCHAR\[\], url needs text"),
        ({"URL": [7], "TEXT": ["a"]}, "URL is of type BIGINT, url needs text"),
        ({"URL": ["u"], "TEXT": [{"en": "a"}]}, r"TEXT is of type STRUCT.*caption needs text"),
        ({"URL": ["u"], "TEXT": ["a"], "WIDTH": [[1]]}, r"WIDTH is of type BIGINT\[\], width needs numbers"),
        ({"URL": ["u"], "TEXT": ["a"], "punsafe": [True]}, "punsafe is of type BOOLEAN, punsafe needs numbers"),
    ],
)
def test_a_type_that_cannot_be_used_is_named(columns: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"a\.parquet: column {named}.*select\.columns\."):
        read((write(tmp_path / "a.parquet", columns),))


def rows(sources: tuple[Source, ...]) -> list[dict[str, Any]]:
    with duckdb.connect() as base:
        asked = base.execute(metadata.view(sources, metadata.present(sources)))
        found: list[dict[str, Any]] = asked.to_arrow_table().to_pylist()
    return found


def test_what_is_no_number_and_no_text_is_absent(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.parquet",
        {
            "URL": [b"http://example.com/\xc3\xa4", b"http://example.com/\xff"],
            "TEXT": pa.array(["a", None]),
            "WIDTH": ["640", "wide"],
            "HEIGHT": pa.array([480.0, float("nan")]),
            "punsafe": pa.array([float("inf"), float("nan")], pa.float32()),
            "pwatermark": pa.nulls(2),
            "hash": pa.array([2**64 - 1, 5], pa.uint64()),
        },
    )
    assert rows(read((file,))) == [
        {
            "url": "http://example.com/\u00e4",
            "caption": "a",
            "width": 640,
            "height": 480,
            "hash": None,
            "pwatermark": None,
            "punsafe": None,
        },
        {"url": None, "caption": None, "width": None, "height": None, "hash": 5, "pwatermark": None, "punsafe": None},
    ]


def test_files_with_other_columns_are_read_as_one_table(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", {"URL": ["u"], "TEXT": ["a"], "WIDTH": [5], "HEIGHT": [6]})
    second = write(tmp_path / "it's.parquet", {"url": ["v"], "caption": ["b"]})
    sources = read((first, second))
    assert rows(metadata.exchanged(sources[:1])) == [{"url": "u", "caption": "a", "width": 6, "height": 5}]
    assert rows(sources)[1] == {"url": "v", "caption": "b", "width": None, "height": None}
    assert metadata.notes(sources, Columns()) == (
        "caption is read from TEXT and caption",
        "width is read from WIDTH; 1 of 2 files have none",
        "height is read from HEIGHT; 1 of 2 files have none",
    )
