import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest
from bigdiff.data.course import Picks
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.member import pack

SIZES = (5, 3, 7)
Make = Callable[..., Path]
Draw = Callable[..., tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def latents(tmp_path: Path, latent_set: Make) -> Path:
    return latent_set(tmp_path / "a", SIZES)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_every_sample_is_read_as_it_was_written(latents: Path, latent_sample: Draw) -> None:
    places = [(shard, row) for shard, size in enumerate(SIZES) for row in range(size)]
    shards, rows = (ints(*column) for column in zip(*places, strict=True))
    picks = Picks(bucket="", sources=np.zeros_like(rows), shards=shards, rows=rows)
    with LatentSet(str(latents)) as opened:
        reader = LatentReader([opened])
        held = reader.hold(len(rows))
        assert reader.fill(held, 0, 0, picks) == []
        raw = held.rows(reader.layouts[""].total).numpy()
        assert [opened.key(2, 5), opened.key(2, 6)] == ["2005", "2006"]
    for at, place in enumerate(places):
        assert raw[at].tobytes() == pack(*latent_sample("a", "", *place))


def test_stock_webdataset_reads_the_same_set(latents: Path, latent_sample: Draw) -> None:
    urls = [str(path) for path in sorted(latents.glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    assert len(samples) == sum(SIZES)
    assert samples[5]["safetensors"] == pack(*latent_sample("a", "", 1, 0))


def test_sets_of_other_shapes_do_not_share_a_batch(tmp_path: Path, latents: Path, latent_set: Make) -> None:
    other = latent_set(tmp_path / "b", (4,))
    content = json.loads((other / manifest.NAME).read_text())
    content["contract"]["shape"] = [4, 2, 3]
    (other / manifest.NAME).write_text(json.dumps(content))
    with LatentSet(str(latents)) as one, LatentSet(str(other)) as two, pytest.raises(UsageError, match="share a batch"):
        LatentReader([one, two])


def test_a_set_without_checksums_is_refused(latents: Path) -> None:
    import pyarrow.parquet as pq

    for file in latents.glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["safetensors_xxh3"]), file)
    with LatentSet(str(latents)) as opened:
        reader = LatentReader([opened])
        picks = Picks(bucket="", sources=ints(0), shards=ints(1), rows=ints(0))
        with pytest.raises(UsageError, match="no column 'safetensors_xxh3'"):
            reader.fill(reader.hold(1), 0, 0, picks)


def test_a_contract_without_a_shape_is_refused(latents: Path) -> None:
    content = json.loads((latents / manifest.NAME).read_text())
    del content["contract"]["shape"]
    (latents / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(UsageError, match="gives no shape"):
        LatentSet(str(latents))


def test_an_unfinished_set_is_refused(latents: Path) -> None:
    content = json.loads((latents / manifest.NAME).read_text())
    content["kind"] = "images"
    (latents / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(UsageError, match="holds images"):
        LatentSet(str(latents))
    (latents / manifest.NAME).unlink()
    with pytest.raises(UsageError, match="not a finished shard set"):
        LatentSet(str(latents))
