import io
import json
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import index, manifest
from bigdiff.data.contract import LatentContract
from bigdiff.data.latents import LatentSet, Slice, batches
from bigdiff.data.member import pack
from bigdiff.data.order import Order
from bigdiff.runtime.files import sha256

SIZES = (5, 3, 7)
CONTRACT = LatentContract(
    vae_sha256="v",
    vae_scaling_factor=1.0,
    vae_factor=8,
    latent_channels=2,
    resolution=16,
    tokenizer_sha256="t",
    empty_tokens=(1, 2, 2),
)


def sample(shard: int, row: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng((shard, row))
    return random.normal(size=(4, 2, 2)).astype(np.float16), random.integers(0, 49408, 3).astype(np.uint16)


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    shards = []
    for number, size in enumerate(SIZES):
        name = f"{number:05d}"
        tar = tmp_path / f"{name}.tar"
        keys = [f"{number}{row:03d}" for row in range(size)]
        with tarfile.open(tar, "w") as archive:
            for row, key in enumerate(keys):
                content = pack(*sample(number, row))
                member = tarfile.TarInfo(f"{key}.safetensors")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        table = {"key": keys, **index.columns(keys, index.members(tar))}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        shards.append(manifest.Shard(name=name, samples=size, bytes=tar.stat().st_size, sha256=sha256(tar)))
    manifest.write(tmp_path, manifest.Manifest(kind="latents", shards=tuple(shards), contract=CONTRACT.lines()))
    return tmp_path


def test_every_sample_is_read_as_it_was_written(latents: Path) -> None:
    places = [(shard, row) for shard, size in enumerate(SIZES) for row in range(size)]
    shards, rows = (np.array(column) for column in zip(*places, strict=True))
    with LatentSet(latents) as opened:
        moments, tokens = opened.read(shards, rows)
        assert opened.keys(shards[-2:], rows[-2:]) == ["2005", "2006"]
    for at, (shard, row) in enumerate(places):
        expected = sample(shard, row)
        assert np.array_equal(moments[at].numpy(), expected[0])
        assert np.array_equal(tokens[at].numpy(), expected[1])


def test_stock_webdataset_reads_the_same_set(latents: Path) -> None:
    urls = [str(path) for path in sorted(latents.glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    assert len(samples) == sum(SIZES)
    assert samples[5]["safetensors"] == pack(*sample(1, 0))


@pytest.mark.parametrize(("size", "micro"), [(1, 4), (1, 2), (2, 2), (2, 1), (4, 1)])
def test_any_split_gives_the_same_global_batches(latents: Path, size: int, micro: int) -> None:
    order = Order(sizes=SIZES, seed=3, window=2)
    expected = order.locate(8, 40)  # from the third batch on, over two epoch ends
    with LatentSet(latents) as opened:
        whole = opened.read(*expected)[0].numpy()
        streams = [
            batches(opened, order, Slice(total=4, micro=micro, rank=rank, size=size), 8, (3, 2)) for rank in range(size)
        ]
        for step in range(10):
            parts = [batch for stream in streams for batch in next(stream)]
            positions = np.concatenate([part.positions.numpy() for part in parts])
            assert sorted(positions.tolist()) == list(range(8 + 4 * step, 12 + 4 * step))
            moments = np.concatenate([part.moments.numpy() for part in parts])
            assert np.array_equal(moments, whole[positions - 8])
        for stream in streams:
            stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("latents")]


def test_what_the_manifest_says_is_checked_at_the_door(latents: Path) -> None:
    tar = latents / "00001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-512])
    with pytest.raises(UsageError, match=r"00001\.tar has .* bytes"):
        LatentSet(latents)
    tar.unlink()
    with pytest.raises(UsageError, match=r"cannot open .*00001\.tar"):
        LatentSet(latents)
    tar.write_bytes(content)
    (latents / "00002.parquet").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"00002\.parquet"):
        LatentSet(latents)


def test_a_tar_cut_while_reading_names_the_place(latents: Path) -> None:
    order = Order(sizes=SIZES, seed=3, window=2)
    with LatentSet(latents) as opened:
        for tar in latents.glob("*.tar"):
            tar.write_bytes(b"")  # same inode, as an overwritten file
        stream = batches(opened, order, Slice(total=4, micro=4, rank=0, size=1), 0, (1, 1))
        with pytest.raises(RunError, match=r"truncated"):
            next(stream)
        stream.close()


def test_an_unfinished_set_is_refused(latents: Path) -> None:
    content = json.loads((latents / manifest.NAME).read_text())
    content["kind"] = "images"
    (latents / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(UsageError, match="holds images"):
        LatentSet(latents)
    (latents / manifest.NAME).unlink()
    with pytest.raises(UsageError, match="not a finished shard set"):
        LatentSet(latents)
