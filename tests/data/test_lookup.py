import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdiff.config.errors import UsageError
from bigdiff.data import lookup, manifest
from bigdiff.data.course import Course
from bigdiff.data.damage import Consumed, Substitution
from bigdiff.data.history import chain, read_starts
from bigdiff.data.ledger import Header, Ledger
from bigdiff.data.mixture import Source
from bigdiff.data.recount import Sample


def test_a_row_is_found_by_key_url_and_hash(image_set: Callable[..., Path]) -> None:
    folder = image_set(5, 3, 4)
    described = manifest.read(folder, "images")
    hashes = pq.read_table(folder / "00001.parquet", columns=["sha256"])["sha256"]
    for column, value in (
        ("key", "000010002"),
        ("url", "http://example.org/000010002"),
        ("sha256", hashes[2].as_py()),
    ):
        found = lookup.rows(str(folder), described, column, value, quiet=True)  # type: ignore[arg-type]
        assert found == lookup.Rows(places=((1, 2),), unread=(), without=0)
        assert lookup.rows(str(folder), described, column, "0", quiet=True).places == ()  # type: ignore[arg-type]


def test_all_rows_with_a_value_are_found_in_any_row_group(image_set: Callable[..., Path]) -> None:
    folder = image_set(9, 9)
    table = pq.read_table(folder / "00001.parquet")
    urls = ["b", "a", None, "c", "a", "d", "e", "a", "f"]
    table = table.set_column(table.column_names.index("url"), "url", pa.array(urls))
    pq.write_table(table, folder / "00001.parquet", row_group_size=2)
    found = lookup.rows(str(folder), manifest.read(folder, "images"), "url", "a", quiet=True)
    assert found.places == ((1, 1), (1, 4), (1, 7))


def test_damaged_index_files_are_named_and_a_column_that_nobody_has_is_refused(image_set: Callable[..., Path]) -> None:
    folder = image_set(2, 2, 2, 2)
    described = manifest.read(folder, "images")
    (folder / "00000.parquet").write_bytes(b"no parquet")
    (folder / "00003.parquet").unlink()
    table = pq.read_table(folder / "00002.parquet")
    pq.write_table(table.drop_columns(["url"]), folder / "00002.parquet")
    found = lookup.rows(str(folder), described, "url", "http://example.org/000010001", quiet=True)
    assert (found.places, found.without) == (((1, 1),), 1)
    assert [entry.partition(" ")[0] for entry in found.unread] == [
        f"{folder}/00000.parquet",
        f"{folder}/00003.parquet",
    ]
    for name in ("00001", "00002"):
        pq.write_table(table.select(["key"]), folder / f"{name}.parquet")
    for name in ("00000", "00003"):
        pq.write_table(table.select(["key"]), folder / f"{name}.parquet")
    with pytest.raises(UsageError, match="have no column 'url'"):
        lookup.rows(str(folder), described, "url", "x", quiet=True)


def test_a_remote_set_is_searched(image_set: Callable[..., Path]) -> None:
    folder = image_set(2, 3)
    described = manifest.read(folder, "images")
    (folder / "00000.parquet").unlink()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        location = f"http://127.0.0.1:{server.server_port}"
        found = lookup.rows(location, described, "key", "000010002", quiet=True)
        server.shutdown()
    assert found.places == ((1, 2),)
    assert [entry.partition(" ")[0] for entry in found.unread] == [f"{location}/00000.parquet"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=2), st.sampled_from([1, 2, 4]), st.integers(1, 12), st.data())
def test_a_sample_is_found_wherever_it_was_read(
    sizes: list[list[int]], lanes: int, steps: int, data: st.DataObject
) -> None:
    sources = tuple(Source(name="a set", sizes=np.array(one)) for one in sizes)
    course = Course(sources=sources, seed=data.draw(st.integers(0, 9)), window=2, lanes=lanes, total=8)
    every = [(n, shard, row) for n, one in enumerate(sizes) for shard, size in enumerate(one) for row in range(size)]
    spared = [sample for sample in every if sample[2]]  # the first of each shard stays good
    bad = set(data.draw(st.lists(st.sampled_from(spared), max_size=4))) if spared else set()
    reads: dict[Sample, list[int]] = defaultdict(list)
    replaced: dict[Sample, list[int]] = defaultdict(list)
    stood_in, lost = set(), []
    for position in range(8 * steps):
        picks = course.locate(position // 8, position % 8, position % 8 + 1)
        found = first = (int(picks.sources[0]), int(picks.shards[0]), int(picks.rows[0]))
        attempt = 0
        while found in bad:
            source, shard, row = found
            lost.append(Substitution(position=position, source=source, shard=shard, row=row, reason="tombstone"))
            attempt += 1
            found = course.substitute(position, attempt)
        if attempt:
            replaced[first].append(position)
            stood_in.add(position)
        reads[found].append(position)
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder), steps, lost)
        stretches, _ = chain(read_starts(Path(folder)))
        sightings = lookup.sightings(stretches, course, every)
    assert [one.sample for one in sightings] == every
    for one in sightings:
        assert list(one.positions) == reads[one.sample]
        assert list(one.steps) == [position // 8 for position in one.positions]
        assert set(one.substitute) == stood_in & set(one.positions)
        assert [(was.position, was.step, was.reason) for was in one.replaced] == [
            (position, position // 8, "tombstone") for position in replaced[one.sample]
        ]


def record(run: Path, steps: int, lost: list[Substitution]) -> None:
    opened = Ledger(
        run,
        Header(
            start="00000000000000000001-aa",
            step=0,
            rank=0,
            size=1,
            fingerprint="f",
            total=8,
            seed=0,
            window=2,
            lanes=1,
            kind="latents",
            inputs=(),
        ),
    )
    for step in range(steps):
        mine = tuple(one for one in lost if one.position // 8 == step)
        opened.write(step, [Consumed(position=8 * step, samples=8, digest=0, substituted=mine)])
    opened.close()
