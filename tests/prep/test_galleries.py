import io
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigdiff.config.errors import RunError
from bigdiff.prep import causes, galleries
from bigdiff.prep.decontaminate import CAPTION, PICTURE
from bigdiff.prep.galleries import KEPT, Threshold
from bigdiff.prep.rules import Bound
from bigdiff.prep.stored import gather

FIGURE = re.compile(r'<figure><img alt="" src="data:image/jpeg;base64,[^"]+">(.*?)</figure>')


def figures(page: str) -> list[str]:
    """The captions of all pictures, with what stands above and below them, a line each."""
    return [unescape(re.sub(r"<[^>]*>+", "\n", each)).strip() for each in FIGURE.findall(page)]


def rows(page: str) -> list[int]:
    return [int(number) for number in re.findall(r"caption &lt;(\d+)&gt;", page)]


def above(column: str, value: float, comparison: str = ">=", both_sides: bool = True) -> Threshold:
    bound = Bound(column=column, comparison=comparison, value=value)
    return Threshold(rule=f"{column} {comparison} {value:g}", bound=bound, both_sides=both_sides)


def test_the_nearest_on_both_sides_of_a_threshold_with_their_score(judged: Any) -> None:
    with judged.base() as base:
        columns = gather(base, judged.layout)
        page = galleries.borderline(base, judged.layout, columns, [above("sharpness", 5.0)])
    by_value = {value: row for row, value in judged.sharpness.items() if row != 2}  # which was taken down
    kept = sorted(value for value in by_value if value >= 5)[:6]
    refused = sorted((value for value in by_value if value < 5), reverse=True)[:6]
    assert rows(page) == [by_value[value] for value in [*kept, *refused]]
    first, second = page.split("just refused")
    assert [each.split("\n")[0] for each in figures(first)] == [f"sharpness {value:g}" for value in kept]
    assert [each.split("\n")[0] for each in figures(second)] == [f"sharpness {value:g}" for value in refused]


def test_of_a_rule_on_metadata_only_what_was_downloaded_can_be_shown(judged: Any) -> None:
    with judged.base() as base:
        columns = gather(base, judged.layout)
        asked = [above("aesthetic", 0.1, ">", both_sides=False), above("absent", 1.0)]
        page = galleries.borderline(base, judged.layout, columns, asked)
        assert galleries.borderline(base, judged.layout, columns, []) == ""
    assert rows(page) == [1, 3, 4, 5, 6, 7]  # aesthetic rises with the row; row 2 was taken down
    assert "just refused" not in page


def test_many_thresholds_share_the_pictures(judged: Any) -> None:
    asked = [above("sharpness", 5.0 + number / 100) for number in range(40)]
    with judged.base() as base:
        page = galleries.borderline(base, judged.layout, gather(base, judged.layout), asked)
    assert len(figures(page)) <= galleries.BORDERLINE


def test_a_duplicate_lies_beside_what_stays(judged: Any) -> None:
    with judged.base() as base:
        page = galleries.pairs(base, judged.layout, gather(base, judged.layout))
    assert figures(page) == ["left out, 0 bits apart\n\ncaption <23>", "stays\n\ncaption <5>"]
    pictures = re.findall(r'src="([^"]+)"', page)
    assert pictures[0] == pictures[1]


def test_the_pairs_that_differ_most_come_first(judged: Any) -> None:
    for file in judged.layout.samples.glob("*.parquet"):
        table = pq.read_table(file)
        hashes = pa.array([(1 << row) - 1 for row in table["row"].to_pylist()], pa.int64())  # `row` bits from row 0's
        pq.write_table(table.set_column(table.column_names.index("phash"), "phash", hashes), file)
    gone = [number for number in range(1, 20) if number != 2]
    dropped = [{"row": row, "step": "duplicate", "cause": "near", "of_row": 0, "of": None} for row in gone]
    pq.write_table(pa.Table.from_pylist(dropped), judged.layout.dropped)
    with judged.base() as base:
        page = galleries.pairs(base, judged.layout, gather(base, judged.layout))
    assert rows(page)[::2] == [19, 18, 17, 16, 15, 14]
    assert set(rows(page)[1::2]) == {0}
    assert "19 bits apart" in page


def test_evaluation_hits_lie_beside_their_picture_or_with_their_caption(judged: Any, tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    Image.new("RGB", (30, 20), (10, 200, 90)).save(tmp_path / "eval" / "a.png")
    dropped = [
        {"row": 3, "step": "evaluation", "cause": PICTURE, "of_row": None, "of": "a.png"},
        {"row": 4, "step": "evaluation", "cause": CAPTION, "of_row": None, "of": "said <before>"},
    ]
    schema = pa.schema({"row": pa.int64(), "step": pa.string(), "cause": pa.string(), "of_row": pa.int64()})
    pq.write_table(pa.Table.from_pylist(dropped, schema.append(pa.field("of", pa.string()))), judged.layout.dropped)
    with judged.base() as base:
        columns = gather(base, judged.layout)
        page = galleries.evaluated(base, judged.layout, columns, str(tmp_path / "eval"))
    assert figures(page) == [
        "left out\n\ncaption <3>",
        "evaluation\n\na.png",
        "caption <4>\n\nevaluation: said <before>",
    ]


def test_what_was_refused_is_shown_by_cause_and_what_was_taken_down_never(judged: Any) -> None:
    with judged.base() as base:
        columns = gather(base, judged.layout)
        page = galleries.refused(base, judged.layout, columns, causes.causes(base, judged.layout))
    low = [row for row, value in judged.sharpness.items() if value < 5 and row != 2]
    high = [row for row, value in judged.sharpness.items() if value >= 20]
    assert rows(page) == sorted(low)[:6] + sorted(high)[:6] or rows(page) == sorted(high)[:6] + sorted(low)[:6]
    assert figures(page)[0].startswith("sharpness ")
    assert 2 not in rows(page)
    assert "taken down" not in page


def test_kept_samples_have_their_captions_and_scores(judged: Any) -> None:
    page = galleries.kept(judged.layout, judged.made)
    listed = pq.read_table(judged.layout.output / "00000.parquet").to_pylist()
    assert [each.split("\n")[0] for each in figures(page)] == [row["caption"] for row in listed][:KEPT]
    assert f"sharpness\N{NO-BREAK SPACE}{listed[0]['sharpness']:g}" in figures(page)[0]


def test_kept_samples_come_from_every_bucket(judged: Any) -> None:
    first, second = judged.made.shards[:2]
    buckets = (replace(first, bucket="32x16"), replace(second, bucket="16x32"))
    said = figures(galleries.kept(judged.layout, replace(judged.made, shards=buckets)))
    heads = [each.split("\n")[0] for each in said]
    assert heads == ["16 x 32"] * second.samples + ["32 x 16"] * first.samples


def test_a_damaged_picture_is_named(judged: Any) -> None:
    for file in judged.layout.pictures.iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    with judged.base() as base, pytest.raises(RunError, match="picture 0 is damaged"):
        columns = gather(base, judged.layout)
        galleries.borderline(base, judged.layout, columns, [above("sharpness", 0.0, both_sides=False)])


def test_a_page_of_noise_is_small() -> None:
    """Noise compresses worst: the bound on a page holds for any pictures."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    most = galleries.KEPT + galleries.BORDERLINE + galleries.REFUSED + 2 * 3 * galleries.PAIRS + 3 * galleries.EVALUATED
    assert most * len(galleries._small(buffer.getvalue(), "noise")) * 4 / 3 < 4_500_000
