from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from bigdiff.config.prep import Pack, Prep
from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.prep.layout import Layout
from bigdiff.prep.scorers import loading

PackedSet = Callable[..., Path]
PLAIN = Scoring(scorers=[Scorer(kind="sharpness"), Scorer(kind="caption_length", at_least=9)])


def test_scores_land_in_the_index_and_thresholds_decide(packed_set: PackedSet, picture: Callable[[int], bytes]) -> None:
    pictures = [picture(number) for number in range(12)]
    prep = Prep(pack=Pack(resolution=24, format="png", samples_per_shard=5), score=PLAIN)
    images = packed_set(pictures, prep)
    rows = [row for file in sorted(images.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert [row["caption"] for row in rows] == [f"caption {number}" for number in range(12)]
    assert [row["caption_length"] for row in rows] == [len(row["caption"]) for row in rows]
    assert len({row["sharpness"] for row in rows}) == 12
    assert not Layout(images).work.exists()
    strict = Scoring(scorers=[PLAIN.scorers[0], Scorer(kind="caption_length", at_least=10)])
    fewer = packed_set(pictures, Prep(pack=prep.pack, score=strict), name="fewer")
    (left,) = (pq.read_table(file).to_pylist() for file in sorted(fewer.glob("*.parquet")))
    assert [row["caption"] for row in left] == ["caption 10", "caption 11"]
    assert loading.load(PLAIN).columns.keys() <= left[0].keys()
