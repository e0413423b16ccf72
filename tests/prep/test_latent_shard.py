import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import webdataset
import xxhash
from PIL import Image
from torchvision.transforms.v2 import functional

from bigdiff.config.errors import RunError, UsageError
from bigdiff.data import images as images_of
from bigdiff.data import index
from bigdiff.data.course import Picks
from bigdiff.models import components
from bigdiff.prep import latent_shard
from bigdiff.prep.encoder import Encoded, Encoder

ImageSet = Callable[..., Path]


def stored(folder: Path, name: str = "00000") -> list[dict[str, object]]:
    """The samples of a shard as stock webdataset gives them."""
    return list(webdataset.WebDataset(str(folder / f"{name}.tar"), shardshuffle=False, empty_check=False))


def images(folder: Path) -> dict[str, bytes]:
    with tarfile.open(folder / "00000.tar") as archive:
        return {one.name: archive.extractfile(one).read() for one in archive if one.name.endswith("jpg")}  # type: ignore[union-attr]


def test_a_sample_is_what_plain_torch_and_torchvision_make_of_the_image(
    image_set: ImageSet, encoder: Encoder, tmp_path: Path
) -> None:
    source = image_set(6)
    latent_shard.write_shard(source, tmp_path / "out", "00000", encoder, lambda count: None)
    samples = stored(tmp_path / "out")
    originals = images(source)
    assert [f"{one['__key__']}.jpg" for one in samples] == list(originals)
    for row, sample in enumerate(samples):
        tensors = safetensors.torch.load(sample["safetensors"])  # type: ignore[arg-type]
        image = Image.open(io.BytesIO(originals[f"{sample['__key__']}.jpg"]))
        small = functional.center_crop(functional.resize(image, 16, functional.InterpolationMode.BICUBIC), 16)
        pixels = functional.pil_to_tensor(small)[None] / 127.5 - 1
        expected = encoder.vae.encode(pixels).latent_dist.parameters[0]
        assert torch.allclose(tensors["moments"].float(), expected, atol=2e-3, rtol=2e-3)
        words = encoder.tokenizer(f"picture {row} of shard 0", padding="max_length", max_length=12)["input_ids"]
        assert tensors["tokens"].tolist() == words


def test_the_parquet_says_where_each_member_lies(image_set: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    source = image_set(6)
    record = latent_shard.write_shard(source, tmp_path, "00000", encoder, lambda count: None)
    table = pq.read_table(tmp_path / "00000.parquet").to_pydict()
    assert list(table) == [
        *("key", "caption", "url", "caption_length", "aesthetic", "sha256"),
        *("safetensors_offset", "safetensors_length", "safetensors_xxh3"),
    ]
    tar = (tmp_path / "00000.tar").read_bytes()
    assert (record.samples, record.bytes, record.sha256) == (6, len(tar), hashlib.sha256(tar).hexdigest())
    found = index.scan(tmp_path / "00000.tar")
    assert index.columns(table["key"], found.members)["safetensors_offset"].tolist() == table["safetensors_offset"]
    assert set(table["safetensors_length"]) == {encoder.layout.total}
    assert len(set(np.diff(table["safetensors_offset"]))) == 1
    for row in range(6):
        start = table["safetensors_offset"][row]
        member = tar[start : start + table["safetensors_length"][row]]
        assert hashlib.sha256(member).hexdigest() == table["sha256"][row]
        assert xxhash.xxh3_64_intdigest(member) == table["safetensors_xxh3"][row]
    before = pq.read_table(source / "00000.parquet").to_pydict()
    assert all(table[column] == before[column] for column in ("key", "caption", "url", "aesthetic"))


def test_the_encoder_sees_the_pixels_that_training_on_pictures_shows(image_set: ImageSet, encoder: Encoder) -> None:
    source = image_set(6)
    table = latent_shard.read_table(source / "00000.parquet")
    places = zip(*(table[name].to_pylist() for name in ("key", "jpg_offset", "jpg_length")), strict=True)
    encoded = [batch.shown for batch in latent_shard.batches(source / "00000.tar", list(places), encoder)]
    rows, none = np.arange(6), np.zeros(6, np.int64)
    with images_of.ImageSet(str(source)) as opened:
        reader = images_of.ImageReader([opened], images_of.Framing(resolution=16))
        held = reader.hold(6)
        assert reader.fill(held, 0, 0, Picks(bucket="", sources=none, shards=none, rows=rows)) == []
        assert np.array_equal(held.pixels(16, 16).numpy(), np.concatenate(encoded))


def test_threads_do_not_change_the_bytes(image_set: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    source, told = image_set(10), []
    one = latent_shard.write_shard(source, tmp_path / "one", "00000", encoder, told.append)
    four = latent_shard.write_shard(source, tmp_path / "four", "00000", replace(encoder, threads=4), told.append)
    assert one == four
    assert told == [4, 4, 2] * 2
    for name in ("00000.tar", "00000.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "four" / name).read_bytes()


@pytest.mark.parametrize("extension", ["png", "webp"])
def test_other_image_columns_are_read(image_set: ImageSet, encoder: Encoder, tmp_path: Path, extension: str) -> None:
    source = image_set(2, extension=extension)
    latent_shard.write_shard(source, tmp_path, "00000", encoder, lambda count: None)
    assert len(stored(tmp_path)) == 2


def test_enlarged_images_are_counted(image_set: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    encoder = replace(encoder, resolution=22)  # the pictures are 20, 21, 22, ... wide and 24 high
    assert latent_shard.write_shard(image_set(6), tmp_path, "00000", encoder, lambda count: None).enlarged == 2


def test_a_damaged_image_is_named_and_leaves_no_shard(image_set: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    source = image_set(6)
    offset = pq.read_table(source / "00000.parquet")["jpg_offset"][4].as_py()
    with (source / "00000.tar").open("r+b") as tar:
        tar.seek(offset)
        tar.write(b"<html>")
    with pytest.raises(RunError, match="image 000000004 cannot be decoded"):
        latent_shard.write_shard(source, tmp_path / "out", "00000", encoder, lambda count: None)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("column", ["key", "caption", "jpg_offset"])
def test_a_missing_column_is_named(image_set: ImageSet, column: str) -> None:
    file = image_set(2) / "00000.parquet"
    pq.write_table(pq.read_table(file).drop_columns([column]), file)
    with pytest.raises(UsageError, match=column):
        latent_shard.read_table(file)
    file.write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="cannot read"):
        latent_shard.read_table(file)


def test_the_canary_refuses_an_autoencoder_that_does_not_fit(
    image_set: ImageSet, encoder: Encoder, tmp_path: Path
) -> None:
    source = image_set(2)  # random weights: grey pictures
    with pytest.raises(RunError, match=r"dB, below 30 dB"):
        latent_shard.write_shard(source, tmp_path, "00000", replace(encoder, least_psnr=30.0), lambda count: None)
    assert list(tmp_path.glob("0*")) == []


def test_each_form_is_what_the_reader_gives(image_set: ImageSet, encoder: Encoder, toy: Path, tmp_path: Path) -> None:
    source = image_set(6)
    text = components.load_text_encoder(str(toy / "text_encoder"))
    plain, every = tmp_path / "plain", tmp_path / "every"
    latent_shard.write_shard(source, plain, "00000", encoder, lambda count: None)
    full = replace(encoder, text_encoder=text, mirrored=True)
    one = latent_shard.write_shard(source, every, "00000", full, lambda count: None)
    four = latent_shard.write_shard(source, tmp_path / "four", "00000", replace(full, threads=4), lambda count: None)
    assert one == four
    for before, after in zip(stored(plain), stored(every), strict=True):
        tensors = safetensors.torch.load(after["safetensors"])  # type: ignore[arg-type]
        for name, tensor in safetensors.torch.load(before["safetensors"]).items():  # type: ignore[arg-type]
            assert torch.equal(tensors[name], tensor)
        assert set(tensors) == {"moments", "tokens", "states", "mirrored"}
        assert len(after["safetensors"]) == full.layout.total  # type: ignore[arg-type]
        expected = text(tensors["tokens"].to(torch.int64)[None]).last_hidden_state[0]
        assert torch.allclose(tensors["states"].float(), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("crops", [3, 5])
def test_crops_are_what_plain_torch_makes_of_parts_of_the_covering_picture(
    image_set: ImageSet, encoder: Encoder, tmp_path: Path, crops: int
) -> None:
    source = image_set(6)
    plain = latent_shard.write_shard(source, tmp_path / "plain", "00000", encoder, lambda count: None)
    full = replace(encoder, crops=crops, mirrored=True)
    one = latent_shard.write_shard(source, tmp_path / "one", "00000", full, lambda count: None)
    four = latent_shard.write_shard(source, tmp_path / "four", "00000", replace(full, threads=4), lambda count: None)
    assert one == four
    assert (one.psnr, one.mean, one.std, one.enlarged) == (plain.psnr, plain.mean, plain.std, plain.enlarged)
    originals = images(source)
    for before, after in zip(stored(tmp_path / "plain"), stored(tmp_path / "one"), strict=True):
        tensors = safetensors.torch.load(after["safetensors"])  # type: ignore[arg-type]
        assert set(tensors) == {"moments", "tokens", "mirrored", "crops", "mirrored_crops"}
        assert torch.equal(tensors["moments"], safetensors.torch.load(before["safetensors"])["moments"])  # type: ignore[arg-type]
        image = Image.open(io.BytesIO(originals[f"{after['__key__']}.jpg"]))
        whole = functional.pil_to_tensor(image)
        small = functional.resize(whole, [16], functional.InterpolationMode.BICUBIC, antialias=True)
        below, right = small.shape[1] - 16, small.shape[2] - 16
        ends = torch.stack([small[:, :16, :16], small[:, below : below + 16, right : right + 16]])
        for name, pixels in (("crops", ends), ("mirrored_crops", ends.flip(3))):
            expected = encoder.vae.encode(pixels / 127.5 - 1).latent_dist.parameters
            assert tensors[name].shape == (crops - 1, 4, 8, 8)
            assert torch.allclose(tensors[name][[0, -1]].float(), expected, atol=2e-3, rtol=2e-3)


def test_pictures_with_room_are_counted(image_set: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    encoder = replace(
        encoder, resolution=8, crops=3
    )  # pictures of 20 to 26 x 24: 22, 23, ... fill 8 x 8 after rounding
    source = image_set(7)
    record = latent_shard.write_shard(source, tmp_path, "00000", encoder, lambda count: None)
    sizes = [Image.open(io.BytesIO(content)).size for content in images(source).values()]
    assert record.cropped == sum(max(size) * 8 // min(size) > 8 for size in sizes) == 2


def test_the_figures_are_those_of_the_stored_latents(image_set: ImageSet, encoder: Encoder, tmp_path: Path) -> None:
    record = latent_shard.write_shard(image_set(9), tmp_path, "00000", encoder, lambda count: None)
    means = np.stack([safetensors.torch.load(one["safetensors"])["moments"][:2].double() for one in stored(tmp_path)])  # type: ignore[arg-type]
    assert record.mean == pytest.approx(means.mean(), rel=1e-3)
    assert record.std == pytest.approx(means.std(), rel=1e-3)


def test_what_goes_wrong_while_writing_behind_is_raised(encoder: Encoder, tmp_path: Path) -> None:
    half = np.zeros((1, 4, 8, 8), np.float16)
    given = Encoded(moments=half, mirrored=None, spread=0.0)
    with (
        pytest.raises(ValueError, match="too long"),  # a name that a plain tar cannot hold
        latent_shard.Members(tmp_path / "x.tar", replace(encoder, threads=2)) as members,
    ):
        members.add(["k" * 300], given, np.zeros((1, 12), np.uint16), None)
