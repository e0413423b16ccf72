import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep import originals
from bigdiff.prep.layout import Layout
from bigdiff.prep.query import database
from bigdiff.prep.stored import gather

# width and height of originals; the last is of a sample that is not in the set
SIZES = [(100, 100), (512, 512), (511, 900), (1024, 768), (3000, 1000), (700, 1000), (9999, 9999)]


def page(layout: Layout, resolution: int, shards: tuple[Shard, ...], sides: int | None = None) -> str:
    layout.samples.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "row": number,
            "offset": 0,
            "length": 1,
            "original_width": width,
            "original_height": height,
            **({} if sides is None else {"width": sides, "height": sides}),
        }
        for number, (width, height) in enumerate(SIZES)
    ]
    pq.write_table(pa.Table.from_pylist(rows), layout.samples / "a.parquet")
    dropped = {"row": [len(SIZES) - 1], "step": ["score"], "cause": ["c"], "of_row": pa.array([None], pa.int64())}
    pq.write_table(pa.table(dropped), layout.dropped)
    made = Manifest(kind="images", shards=shards, contract={"resolution": resolution})
    with database(None, None) as base:
        return originals.written(base, gather(base, layout), made)


PLAIN = (Shard(name="00000", samples=6, bytes=1, sha256="0"),)


def rows(drawn: str, heading: str) -> dict[str, int]:
    table = drawn.partition(heading)[2].partition("</table>")[0]
    return {
        label: int(count.replace(",", ""))
        for label, count in re.findall(r'<th scope="row">([^<]*)</th><td class="n">([\d,]+)</td>', table)
    }


def test_shorter_sides_are_counted_around_the_resolution(tmp_path: Any) -> None:
    drawn = page(Layout(tmp_path), 512, PLAIN, sides=512)
    counted = rows(drawn, "shorter side, pixels")
    assert counted == {"0 to 255": 1, "384 to 511": 1, "512 to 767": 2, "768 to 1,023": 2}
    assert "2 of 6 samples (33.3%) are stored larger" in drawn
    assert "6 samples" in drawn


def test_proportions_are_named_by_the_usual_formats(tmp_path: Any) -> None:
    drawn = page(Layout(tmp_path), 512, PLAIN)
    assert rows(drawn, "width : height") == {
        "to 9:14": 1,
        "about 2:3": 1,
        "about square": 2,
        "about 5:4 and 4:3": 1,
        "2:1 and wider": 1,
    }
    assert "are stored larger" not in drawn  # nobody knows how large they are stored


def test_buckets_are_listed_with_their_samples_and_bytes(tmp_path: Any) -> None:
    shards = (
        Shard(name="00000", samples=4, bytes=3_000_000, sha256="0", bucket="640x384"),
        Shard(name="00001", samples=1, bytes=1_000_000, sha256="0", bucket="512x512"),
        Shard(name="00002", samples=1, bytes=500_000, sha256="0", bucket="640x384"),
    )
    drawn = page(Layout(tmp_path), 512, shards, sides=512).partition("Buckets")[2]
    cells = [re.sub(r"<[^>]*>", "|", row).split("|") for row in re.findall(r"<tr>(.*?)</tr>", drawn)[1:]]
    found = [[cell for cell in row if cell] for row in cells]
    assert found == [["512 x 512", "1", "16.7%", "1", "1 MB"], ["640 x 384", "5", "83.3%", "2", "3.5 MB"]]
    assert "Buckets" not in page(Layout(tmp_path / "other"), 512, PLAIN)


def test_whole_pictures_are_as_large_as_they_are_stored(judged: Any) -> None:
    made = replace(judged.made, contract={**judged.made.contract, "resolution": 24, "crop": "none"})
    with judged.base() as base:
        columns = gather(base, judged.layout)
        base.execute("UPDATE facts SET width = 36 WHERE row = 1")
        base.execute("UPDATE facts SET height = 9999 WHERE step IS NOT NULL")
        drawn = originals.written(base, columns, made)
        square = originals.written(base, columns, judged.made)
    pixels = 24 * 24 + 12 * 24 / judged.made.samples
    assert "nothing was cut off" in drawn
    assert f"{pixels:.3g} pixels a picture on average, {pixels / 576:.3g} times those" in drawn
    assert "the longest side is 36." in drawn
    assert "centre square was cut off" in square and "Stored whole" not in square


def test_originals_of_one_size_need_no_histogram(judged: Any) -> None:
    made = replace(judged.made, contract={**judged.made.contract, "resolution": 40})
    with judged.base() as base:
        drawn = originals.written(base, gather(base, judged.layout), made)
    assert "<svg" not in drawn
    assert rows(drawn, "shorter side, pixels") == {"40 to 255": judged.made.samples}
