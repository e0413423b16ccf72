import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from bigdiff.config.dedup import Dedup
from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Pack, Prep
from bigdiff.config.repack import Repack, Shards
from bigdiff.config.scoring import Scorer, Scoring, only
from bigdiff.data import manifest
from bigdiff.prep import score
from bigdiff.prep.claim import Outcome
from bigdiff.prep.repack import repack
from bigdiff.runtime.files import sha256
from bigdiff.runtime.workers import Workers

SHARPNESS = Scorer(kind="sharpness")
PREP = Prep(
    pack=Pack(resolution=24, format="png", samples_per_shard=5),
    score=Scoring(scorers=[SHARPNESS, Scorer(kind="caption_length")]),
)
ONE = Repack(pack=Shards(samples_per_shard=8, processes=1))
PackedSet = Callable[..., Path]


@pytest.fixture
def images(packed_set: PackedSet, picture: Callable[[int], bytes]) -> Path:
    return packed_set([picture(number) for number in range(12)], PREP)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def facts(folder: Path) -> list[dict[str, Any]]:
    """The rows without the places of their members."""
    return [
        {name: value for name, value in row.items() if name.rpartition("_")[0] not in ("png", "json", "txt")}
        for row in rows(folder)
    ]


def run(settings: Repack, images: Path, output: Path) -> Outcome:
    return repack(settings, images, output, Workers(1), lambda line: None)


def test_without_a_rule_it_is_the_same_set_in_other_shards(images: Path, tmp_path: Path) -> None:
    made = run(ONE, images, tmp_path / "new")
    assert [shard.samples for shard in made.manifest.shards] == [6, 6]
    assert facts(tmp_path / "new") == facts(images)
    pictures = {}
    for folder in (images, tmp_path / "new"):
        tars = [str(path) for path in sorted(folder.glob("*.tar"))]
        read = webdataset.WebDataset(tars, shardshuffle=False)
        pictures[folder] = [(sample["__key__"], hashlib.sha256(sample["png"]).hexdigest()) for sample in read]
    assert pictures[images] == pictures[tmp_path / "new"]
    assert pictures[images] == [(row["key"], row["sha256"]) for row in rows(images)]
    assert made.manifest.contract == manifest.read(images, "images").contract
    assert not (tmp_path / "new" / "_work").exists()
    assert run(ONE, images, tmp_path / "new").was_finished


def test_what_was_taken_down_is_gone(images: Path, tmp_path: Path) -> None:
    old = rows(images)
    taken = tmp_path / "takedown.txt"
    taken.write_text(f"{old[0]['key']}\n\n{old[4]['url']}\n{old[7]['sha256']}\nunknown\n")
    settings = Repack(pack=replace(ONE.pack, takedown=str(taken)))
    made = run(settings, images, tmp_path / "new")
    assert made.manifest.samples == 9
    assert [row["key"] for row in rows(tmp_path / "new")] == [
        row["key"] for number, row in enumerate(old) if number not in (0, 4, 7)
    ]
    page = made.report.read_text()
    assert "not taken down" in page
    taken.write_text("something else\n")
    with pytest.raises(UsageError, match=r"takedown\.entries=4, now it is 1"):
        run(settings, images, tmp_path / "new")


def test_samples_that_stand_for_many_can_be_a_set_of_their_own(
    packed_set: PackedSet, picture: Callable[[int], bytes], tmp_path: Path
) -> None:
    sizes = {0: 4, 1: 1, 2: 2, 3: 1}  # how often each picture comes
    images = packed_set([picture(number) for number, count in sizes.items() for _ in range(count)], PREP)
    assert sorted(row["cluster_size"] for row in rows(images)) == [1, 1, 2, 4]
    parts = {"many": {"cluster_size_at_least": 2}, "few": {"cluster_size_below": 2}, "two": {}}
    parts["two"] = {"cluster_size_at_least": 2, "cluster_size_below": 3}
    for name, chosen in parts.items():
        run(replace(ONE, pack=replace(ONE.pack, **chosen)), images, tmp_path / name)
    found = {name: sorted(row["cluster_size"] for row in rows(tmp_path / name)) for name in parts}
    assert found == {"many": [2, 4], "few": [1, 1], "two": [2]}
    assert "cluster_size &gt;= 2" in (tmp_path / "many" / "report" / "index.html").read_text()


def test_a_set_without_cluster_sizes_has_no_rule_on_them(images: Path, tmp_path: Path) -> None:
    for file in images.glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["cluster_size"]), file)
    asked = replace(ONE, pack=replace(ONE.pack, cluster_size_at_least=2))
    with pytest.raises(
        UsageError, match=r"00000\.parquet has no column cluster_size, which pack\.cluster_size_at_least"
    ):
        run(asked, images, tmp_path / "new")


def test_thresholds_move_without_scoring_again(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = rows(images)
    middle = sorted(row["sharpness"] for row in old)[6]
    monkeypatch.setattr(score, "score_unit", None)  # nothing may be scored
    settings = replace(ONE, score=Scoring(scorers=[replace(SHARPNESS, at_least=middle)]))
    run(settings, images, tmp_path / "new")
    assert facts(tmp_path / "new") == [row for row in facts(images) if row["sharpness"] >= middle]


def test_new_scorers_are_added_and_those_of_other_weights_scored_again(images: Path, tmp_path: Path) -> None:
    content = json.loads((images / manifest.NAME).read_text())
    content["lineage"]["scored"]["sharpness"] = "of another version"
    (images / manifest.NAME).write_text(json.dumps(content))
    settings = replace(ONE, score=Scoring(scorers=[SHARPNESS, Scorer(kind="flatness")]))
    made = run(settings, images, tmp_path / "new")
    old, new = facts(images), facts(tmp_path / "new")
    assert [{**row, "flatness": None} for row in new] == [{**row, "flatness": None} for row in old]
    assert all(0 <= row["flatness"] <= 1 for row in new)
    scored = made.manifest.lineage["scored"]
    assert set(scored) == {"sharpness", "caption_length", "flatness"}
    assert scored["sharpness"] != "of another version"


def test_the_set_itself_is_no_output(images: Path) -> None:
    before = sha256(images / manifest.NAME)
    with pytest.raises(UsageError, match="are both"):
        run(ONE, images, images)
    assert sha256(images / manifest.NAME) == before


def test_near_duplicates_go_and_embeddings_are_made_for_them(
    images: Path, tmp_path: Path, tiny_clip: str, random_weights: dict[str, Path]
) -> None:
    """All of these pictures are alike to a CLIP that knows three circles: one stays, and stands for all."""
    head = Scorer(kind="aesthetic_v1", weights=str(random_weights["aesthetic_v1"]))
    scoring = Scoring(scorers=[head], clip=tiny_clip, embeddings=True)
    alike = Dedup(embedding_above=0.5, keep="highest", keep_by="aesthetic_v1")
    made = run(replace(ONE, score=scoring, dedup=alike), images, tmp_path / "new")
    plain = run(replace(ONE, score=replace(scoring, embeddings=False)), images, tmp_path / "scored")
    assert set(made.manifest.lineage["scored"]) == {"sharpness", "caption_length", "aesthetic_v1"}
    assert set(made.manifest.lineage["scorers"]) == {"aesthetic_v1", "embeddings"}
    scores = [row["aesthetic_v1"] for row in rows(tmp_path / "scored")]
    assert plain.manifest.samples == 12
    assert max(scores) in [row["aesthetic_v1"] for row in rows(tmp_path / "new")]
    assert sum(row["cluster_size"] for row in rows(tmp_path / "new")) == 12
    again = run(replace(ONE, score=only(scoring, []), dedup=alike), tmp_path / "new", tmp_path / "again")
    assert facts(tmp_path / "again") == facts(tmp_path / "new")  # nothing more to drop, nothing lost of the sizes
    assert again.manifest.samples == made.manifest.samples


def test_evaluation_pictures_and_captions_go(images: Path, tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "four.png").write_bytes(picture(4))
    captions = tmp_path / "captions.csv"
    captions.write_text("caption\nCaption 7.\n")
    clean = Dedup(evaluation_pictures=str(tmp_path / "val"), evaluation_captions=str(captions))
    run(replace(ONE, dedup=clean), images, tmp_path / "new")
    left = {row["caption"] for row in rows(images)} - {row["caption"] for row in rows(tmp_path / "new")}
    assert left == {"caption 4", "caption 7"}
    (tmp_path / "val" / "four.png").write_bytes(picture(5))
    with pytest.raises(UsageError, match=r"inputs\.evaluation_pictures"):
        run(replace(ONE, dedup=clean), images, tmp_path / "new")


def drawn(number: int) -> bytes:
    """A PNG of soft colours, of 60, 90 or 120 by 90 pixels."""
    small = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((60 + 30 * (number % 3), 90), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def test_whole_pictures_stay_whole_and_are_compared_whole(packed_set: PackedSet, tmp_path: Path) -> None:
    prep = Prep(pack=Pack(resolution=32, crop="none", format="png", samples_per_shard=4))
    images = packed_set([drawn(number) for number in range(9)], prep, name="whole")
    old = facts(images)
    assert {(row["width"], row["height"]) for row in old} == {(32, 48), (32, 32), (42, 32)}
    made = run(ONE, images, tmp_path / "new")
    assert facts(tmp_path / "new") == old
    assert [(shard.bucket, shard.samples) for shard in made.manifest.shards] == [("", 5), ("", 4)]
    assert made.manifest.contract == manifest.read(images, "images").contract
    assert made.manifest.contract["crop"] == "none"
    page = made.report.read_text()
    assert "samples, whole, the shorter side 32" in page and "the longest side is 48." in page
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "five.png").write_bytes(drawn(5))
    clean = Dedup(evaluation_pictures=str(tmp_path / "val"), evaluation_distance=0)
    run(replace(ONE, dedup=clean), tmp_path / "new", tmp_path / "clean")
    assert facts(tmp_path / "clean") == [row for row in old if row["caption"] != "caption 5"]


def test_buckets_stay_what_they_are(packed_set: PackedSet, tmp_path: Path) -> None:
    prep = Prep(pack=Pack(resolution=32, bucket_step=8, format="png", samples_per_shard=2))
    images = packed_set([drawn(number) for number in range(9)], prep, name="bucketed")
    old = manifest.read(images, "images")
    assert [(shard.bucket, shard.samples) for shard in old.shards] == [
        ("24x40", 2),
        ("24x40", 1),
        ("32x32", 2),
        ("32x32", 1),
        ("40x24", 2),
        ("40x24", 1),
    ]
    made = run(ONE, images, tmp_path / "new")
    assert [(shard.bucket, shard.samples) for shard in made.manifest.shards] == [
        ("24x40", 3),
        ("32x32", 3),
        ("40x24", 3),
    ]
    by_key = {row["key"]: row for row in facts(images)}
    assert {row["key"]: row for row in facts(tmp_path / "new")} == by_key
    assert made.manifest.contract == old.contract
