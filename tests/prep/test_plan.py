from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.config.dedup import Dedup
from bigdiff.config.errors import RunError
from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.data.damage import Tombstones
from bigdiff.prep.buckets import Fit
from bigdiff.prep.decontaminate import CAPTION, PICTURE, Pictures
from bigdiff.prep.dedup import CONTENT, NEAR
from bigdiff.prep.layout import Layout
from bigdiff.prep.plan import DUPLICATE, TAKEN_DOWN, Choice, plan, read

SPREAD = 0x0123_4567_89AB_CDEF  # times a small number: hashes that differ in many bits
SHARP = Scoring(
    scorers=[
        Scorer(kind="sharpness", at_least=10.0),
        Scorer(kind="flatness", below=0.5),
        Scorer(kind="language", languages=("en", "de")),
    ]
)


def unit(layout: Layout, name: str, rows: list[dict[str, Any]], scores: list[dict[str, Any]] | None = None) -> None:
    samples = [
        {
            "key": f"{row['row']:09d}",
            "url": f"http://example.com/{row['row']}",
            "sha256": f"hash {row['row']}",
            "offset": 0,
            "length": 1,
            "caption": f"caption {row['row']}",
            "phash": SPREAD * (row["row"] + 1),
            **row,
        }
        for row in rows
    ]
    for folder, content in ((layout.samples, samples), (layout.scores, scores)):
        if content is not None:
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(content), folder / f"{name}.parquet")


def dropped(layout: Layout) -> dict[int, tuple[str, str, int | None]]:
    return {row["row"]: (row["step"], row["cause"], row["of_row"]) for row in pq.read_table(layout.dropped).to_pylist()}


def sizes(layout: Layout) -> dict[int, int]:
    return {row["row"]: row["cluster_size"] for row in pq.read_table(layout.plan).to_pylist()}


def placed(layout: Layout) -> list[tuple[int, str, int]]:
    return [(row["row"], row["unit"], row["shard"]) for row in pq.read_table(layout.plan).to_pylist()]


def test_samples_keep_their_order_and_shards_differ_by_one_at_most(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    unit(layout, "b", [{"row": row} for row in (3, 1, 5)])
    unit(layout, "a", [{"row": row} for row in (0, 2, 4, 6)])
    made = plan(layout, Choice(samples_per_shard=3))
    assert (made.samples, made.shards) == (7, ("", "", ""))
    units = {0: "a", 2: "a", 4: "a", 6: "a", 1: "b", 3: "b", 5: "b"}
    assert placed(layout) == [(row, units[row], shard) for row, shard in enumerate([0, 0, 0, 1, 1, 2, 2])]
    assert dropped(layout) == {}


def test_each_sample_has_the_cause_of_the_first_step_that_refuses_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    rows = [{"row": row} for row in range(8)]
    rows[3]["sha256"] = rows[1]["sha256"] = rows[0]["sha256"] = "same"
    rows[7]["url"] = "http://example.com/mine"
    passing = {"sharpness": 11.0, "flatness": 0.1, "detected_language": "en"}
    scores = [{"row": row, **passing} for row in range(8)]
    scores[0] |= {"sharpness": 9.0}  # the first of three equal ones goes, so the second stays
    scores[2] |= {"flatness": 0.5, "detected_language": "fr"}
    scores[4] |= {"sharpness": None}
    scores[5] |= {"sharpness": float("nan"), "detected_language": "fr"}
    scores[7] |= {"sharpness": 0.0}
    unit(layout, "a", rows, scores)
    taken = Tombstones(entries=frozenset({"http://example.com/mine", "000000006", "unknown"}))
    made = plan(layout, Choice(samples_per_shard=9, takedown=taken, scoring=SHARP))
    assert dropped(layout) == {
        0: ("score", "sharpness >= 10", None),
        2: ("score", "flatness < 0.5", None),
        3: ("duplicate", DUPLICATE, 1),
        4: ("score", "sharpness >= 10", None),
        5: ("score", "sharpness >= 10", None),
        6: ("takedown", TAKEN_DOWN, None),
        7: ("takedown", TAKEN_DOWN, None),
    }
    assert [(count.rule, count.left, count.only) for count in made.counts] == [
        (TAKEN_DOWN, 6, 2),
        ("sharpness >= 10", 3, 2),  # 5 fails another rule, too
        ("flatness < 0.5", 2, 0),
        ("detected_language is en or de", 2, 0),
        (DUPLICATE, 1, 1),
    ]
    assert [row for row, _, _ in placed(layout)] == [1]
    assert read(layout) == made


def test_a_decision_is_made_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    unit(layout, "a", [{"row": row} for row in range(4)])
    made = plan(layout, Choice(samples_per_shard=2))
    before = layout.plan.read_bytes()
    assert plan(layout, Choice(samples_per_shard=1)) == made
    assert layout.plan.read_bytes() == before
    layout.plan.unlink()  # a kill before the last file: the same again
    assert plan(layout, Choice(samples_per_shard=2)) == made
    assert layout.plan.read_bytes() == before


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    unit(layout, "a", [{"row": 0}], [{"row": 0, "sharpness": 1.0, "flatness": 0.0, "detected_language": "en"}])
    with pytest.raises(RunError, match="no sample is left of 1: after 'sharpness >= 10': the same command"):
        plan(layout, Choice(samples_per_shard=2, scoring=SHARP))


def test_duplicates_near_and_far_and_evaluation_pictures_and_captions(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "set")
    hashes = [0x5555_0000_FFFF_1234, 0x0F0F_F0F0_3C3C_C3C3, 0x3333_CCCC_00FF_FF00]
    rows = [{"row": row, "phash": hashes[row % 3] ^ (1 << row)} for row in range(6)]  # 3, 4, 5 are 2 bits off 0, 1, 2
    rows[5] |= {"original_width": 10, "original_height": 10}
    rows[5]["phash"], rows[5]["caption"] = SPREAD, "A photo, of a CAT!"
    unit(layout, "a", rows)
    captions = tmp_path / "captions.txt"
    captions.write_text("a photo of a cat\n")
    choice = Choice(
        samples_per_shard=9,
        dedup=Dedup(
            near_distance=2, evaluation_captions=str(captions), evaluation_pictures="coco", evaluation_distance=1
        ),
    )
    evaluation = Pictures(files=("val/1.jpg", "val/2.jpg"), hashes=(hashes[1] ^ 2, hashes[1] ^ (1 << 4) ^ (1 << 9)))
    made = plan(layout, choice, evaluation)
    assert dropped(layout) == {
        1: ("evaluation", PICTURE, None),
        3: ("duplicate", NEAR, 0),
        4: ("evaluation", PICTURE, None),
        5: ("evaluation", CAPTION, None),
    }
    named = {row["row"]: row["of"] for row in pq.read_table(layout.dropped).to_pylist()}
    assert named == {1: "val/1.jpg", 3: None, 4: "val/2.jpg", 5: "a photo of a cat"}
    assert [(count.rule, count.left) for count in made.counts] == [
        (PICTURE, 4),
        (CAPTION, 3),
        (DUPLICATE, 3),
        (NEAR, 2),
    ]
    assert sizes(layout) == {0: 2, 2: 1}
    assert any("nearly the same" in note for note in made.notes)  # a third of them: a person should look


def test_a_kept_sample_stands_for_all_that_went_for_it_in_this_job_and_before(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    rows: list[dict[str, Any]] = [{"row": row, "cluster_size": row + 1} for row in range(4)]
    rows[0]["sha256"] = rows[2]["sha256"] = rows[3]["sha256"] = "same"
    unit(layout, "a", rows)
    plan(layout, Choice(samples_per_shard=9))
    assert sizes(layout) == {0: 1 + 3 + 4, 1: 2}


def test_embeddings_are_those_of_the_samples_place_in_its_unit(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    unit(layout, "a", [{"row": row} for row in (4, 0, 2)])
    unit(layout, "b", [{"row": row} for row in (1, 3)])
    directions = np.eye(8, dtype=np.float16)
    layout.embeddings.mkdir(parents=True)
    np.save(layout.embeddings / "a.npy", directions[[4, 0, 2]])
    np.save(layout.embeddings / "b.npy", directions[[4, 2]])  # 1 is like 4, 3 like 2
    plan(layout, Choice(samples_per_shard=9, dedup=Dedup(embedding_above=0.9)))
    assert dropped(layout) == {3: ("duplicate", CONTENT, 2), 4: ("duplicate", CONTENT, 1)}


def test_each_shard_has_one_bucket_and_each_bucket_its_samples_in_order(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    wide = {1, 3, 4, 5, 8}
    unit(layout, "a", [{"row": row, "width": 640 if row in wide else 512, "height": 384} for row in range(9)])
    made = plan(layout, Choice(samples_per_shard=3, fit=Fit(shapes=((640, 384), (512, 384)))))
    assert made.shards == ("512x384", "512x384", "640x384", "640x384")
    shards: dict[int, list[int]] = {}
    for row, _, shard in placed(layout):
        shards.setdefault(shard, []).append(row)
    assert shards == {0: [0, 2], 1: [6, 7], 2: [1, 3, 4], 3: [5, 8]}
