import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash
from PIL import Image

from bigdiff.config.errors import RunError
from bigdiff.config.prep import Pack, Prep
from bigdiff.data.manifest import Shard
from bigdiff.prep.layout import Layout
from bigdiff.prep.pack import Task, write_shard
from bigdiff.prep.plan import DUPLICATE, Choice, plan
from bigdiff.prep.verify import units, verify
from bigdiff.runtime.files import sha256

PREP = Prep(pack=Pack(resolution=16, samples_per_shard=4, format="png"))


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (shade, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def packed(layout: Layout, prep: Prep = PREP) -> list[Shard]:
    for unit in units(layout, prep):
        verify(unit)
    decided = plan(layout, Choice(samples_per_shard=prep.pack.samples_per_shard))
    tasks = [Task(output=layout.output, number=number, format="png") for number in range(len(decided.shards))]
    return [write_shard(task) for task in tasks]


def rows(layout: Layout) -> list[dict[str, Any]]:
    return [row for file in sorted(layout.output.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_shards_are_even_ordered_and_hold_what_their_tables_say(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded([*map(picture, range(9)), "HTTP 429"], second={9: picture(99)}, size=4)
    prep = replace(PREP, download=replace(PREP.download, rows_per_file=4))
    shards = packed(layout, prep)
    assert [shard.samples for shard in shards] == [4, 3, 3]
    for shard in shards:
        tar = layout.output / f"{shard.name}.tar"
        assert (shard.bytes, shard.sha256) == (tar.stat().st_size, sha256(tar))
    assert [row["key"] for row in rows(layout)] == sorted(row["key"] for row in rows(layout))
    for shard in shards:
        content = (layout.output / f"{shard.name}.tar").read_bytes()
        for row in pq.read_table(layout.output / f"{shard.name}.parquet").to_pylist():
            members = {end: content[row[f"{end}_offset"] :][: row[f"{end}_length"]] for end in ("png", "txt", "json")}
            assert hashlib.sha256(members["png"]).hexdigest() == row["sha256"]
            assert all(xxhash.xxh3_64_intdigest(members[end]) == row[f"{end}_xxh3"] for end in members)
            assert members["txt"].decode() == row["caption"]
            facts = json.loads(members["json"])
            assert facts == {name: row[name] for name in facts}
            assert {"aesthetic", "url", "original_width", "sha256"} <= set(facts)


def test_stock_webdataset_reads_them(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded([picture(shade) for shade in range(6)])
    shards = packed(layout)
    urls = [str(layout.output / f"{shard.name}.tar") for shard in shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [(each["__key__"], each["txt"]) for each in read] == [(f"{row:09d}", f"caption {row}") for row in range(6)]
    assert [each["png"].getpixel((3, 3))[0] for each in read] == list(range(6))


def test_of_equal_pictures_the_first_stays(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded([picture(1), picture(2), picture(1), picture(3), picture(2), picture(1)], size=2)
    prep = replace(PREP, download=replace(PREP.download, rows_per_file=2))
    packed(layout, prep)
    assert [row["key"] for row in rows(layout)] == ["000000000", "000000001", "000000003"]
    dropped = pq.read_table(layout.dropped).to_pylist()
    assert [(row["row"], row["of_row"], row["cause"]) for row in dropped] == [
        (2, 0, DUPLICATE),
        (4, 1, DUPLICATE),
        (5, 0, DUPLICATE),
    ]


def test_tars_name_no_time_and_no_owner_and_come_out_the_same(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded([picture(shade) for shade in range(3)])
    packed(layout)
    files = [layout.output / "00000.tar", layout.output / "00000.parquet"]
    before = [file.read_bytes() for file in files]
    with tarfile.open(files[0]) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    (layout.shards / "00000.json").unlink()
    layout.plan.unlink()
    files[0].write_bytes(b"cut short")
    packed(layout)
    assert [file.read_bytes() for file in files] == before


def test_a_finished_shard_is_left_alone(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded([picture(1)])
    (shard,) = packed(layout)
    Path(layout.output / "00000.tar").write_bytes(b"left alone")
    assert packed(layout) == [shard]
    assert (layout.output / "00000.tar").read_bytes() == b"left alone"


def test_nothing_left_is_an_error(downloaded: Callable[..., Layout]) -> None:
    layout = downloaded(["HTTP 404", b"<html>"])
    with pytest.raises(RunError, match="no sample is left of 0"):
        packed(layout)
