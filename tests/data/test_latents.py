import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest
from bigdiff.data.course import Picks
from bigdiff.data.damage import Consumed
from bigdiff.data.latents import LINE, Batch, Buffer, LatentReader, LatentSet, layouts
from bigdiff.data.member import Layout, pack

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
        raw = held.target(reader.layouts[""].total)
        assert [opened.key(2, 5), opened.key(2, 6)] == ["2005", "2006"]
    for at, place in enumerate(places):
        assert raw[at].tobytes() == pack(*latent_sample("a", "", *place))


@pytest.mark.parametrize("member", [1, LINE - 1, LINE, LINE + 1, 1000])
def test_samples_begin_at_cache_lines_and_keep_their_places(member: int) -> None:
    held = Buffer(6, 1000)
    target = held.target(member)
    assert target.shape == (6, member) and not target.any()
    assert all(row.ctypes.data % LINE == 0 for row in target)
    target[:] = np.arange(1, 7, dtype=np.uint8)[:, None]
    for first, count in ((0, 6), (2, 3), (5, 1)):
        rows = held.rows(member, first, count)
        assert rows.is_contiguous() and np.array_equal(rows[:, :member].numpy(), target[first : first + count])


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


def of_members(members: list[bytes], found: Layout) -> Batch:
    """The batch that holds these members."""
    return Batch(
        raw=torch.frombuffer(bytearray(b"".join(members)), dtype=torch.uint8).view(len(members), -1),
        layout=found,
        bucket="",
        positions=torch.arange(len(members)),
        consumed=Consumed(position=0, samples=len(members), digest=0, substituted=()),
        wait_seconds=0.0,
    )


def test_mirrored_copies_and_means_are_seen_by_the_contract() -> None:
    contract = {"shape": [4, 3, 2], "text_length": 5, "text_states": 6, "stored": "mean", "mirror": "stored"}
    (found,) = layouts(contract, "x").values()
    random = np.random.default_rng(0)
    stored, mirrored = (random.normal(size=(2, 4, 3, 2)).astype(np.float16) for _ in range(2))
    states, tokens = random.normal(size=(5, 6)).astype(np.float16), np.arange(5, dtype=np.uint16)
    members = [pack(stored[row], tokens, states, mirrored[row], mean=True) for row in range(2)]
    batch = of_members(members, found)
    assert found.mean and np.array_equal(batch.moments.numpy(), stored)
    assert np.array_equal(batch.mirrored.numpy(), mirrored)
    assert np.array_equal(batch.states[1].numpy(), states)
    assert found.stored == "mean (4, 3, 2) and 5 tokens with states of 6 and mirrored ones"


def test_other_crops_are_seen_by_the_contract() -> None:
    contract = {"shape": [4, 3, 2], "text_length": 5, "mirror": "stored", "crops": 5}
    (found,) = layouts(contract, "x").values()
    random = np.random.default_rng(0)
    stored, mirrored = (random.normal(size=(2, 4, 3, 2)).astype(np.float16) for _ in range(2))
    crops, turned = (random.normal(size=(2, 4, 4, 3, 2)).astype(np.float16) for _ in range(2))
    tokens = np.arange(5, dtype=np.uint16)
    members = [pack(stored[row], tokens, None, mirrored[row], False, (crops[row], turned[row])) for row in range(2)]
    batch = of_members(members, found)
    assert np.array_equal(batch.moments.numpy(), stored) and np.array_equal(batch.mirrored.numpy(), mirrored)
    assert np.array_equal(batch.crops.numpy(), crops) and np.array_equal(batch.mirrored_crops.numpy(), turned)
    assert found.stored == "moments (4, 3, 2) and 5 tokens of 5 crops and mirrored ones"


def test_sets_of_other_forms_do_not_share_a_batch(tmp_path: Path, latents: Path, latent_set: Make) -> None:
    other = latent_set(tmp_path / "b", (4,))
    content = json.loads((other / manifest.NAME).read_text())
    content["contract"]["mirror"] = "stored"
    (other / manifest.NAME).write_text(json.dumps(content))
    with (
        LatentSet(str(latents)) as one,
        LatentSet(str(other)) as two,
        pytest.raises(UsageError, match=r"and mirrored ones, .*share a batch"),
    ):
        LatentReader([one, two])
