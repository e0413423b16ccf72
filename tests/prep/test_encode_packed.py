"""Sets that the packer made, through the encoder."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Pack, Prep
from bigdiff.data import manifest
from bigdiff.prep import encode
from bigdiff.prep.encode import Settings


def test_what_the_packer_sorts_into_buckets_is_encoded_in_them(
    packed_set: Callable[..., Path], toy: Path, tmp_path: Path
) -> None:
    def drawn(number: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (60 + 30 * (number % 3), 90), (number * 20, 90, 40)).save(buffer, "PNG")
        return buffer.getvalue()

    prep = Prep(pack=Pack(resolution=16, bucket_step=4, format="png", samples_per_shard=2))
    images = packed_set([drawn(number) for number in range(9)], prep)
    settings = Settings(
        vae=str(toy / "vae"), tokenizer=str(toy / "tokenizer"), resolution=0, text_length=12, batch=4, least_psnr=0.0
    )
    made = encode.encode(images, tmp_path / "out", settings)
    assert made.buckets == manifest.read(images, "images").buckets
    assert len(set(made.buckets)) == 3
    assert made.samples == 9


def test_several_crops_of_what_is_cropped_already_are_refused(
    packed_set: Callable[..., Path], toy: Path, tmp_path: Path
) -> None:
    def drawn(number: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (120, 90), (number * 20, 90, 40)).save(buffer, "PNG")
        return buffer.getvalue()

    plain = Settings(
        vae=str(toy / "vae"), tokenizer=str(toy / "tokenizer"), resolution=0, text_length=12, batch=4, least_psnr=-99.0
    )
    buckets = Prep(pack=Pack(resolution=16, bucket_step=4, format="png", samples_per_shard=2))
    images = packed_set([drawn(number) for number in range(4)], buckets, "buckets")
    with pytest.raises(UsageError, match=r"--crops has no effect on .*buckets: its pictures have their bucket's shape"):
        encode.encode(images, tmp_path / "out", replace(plain, crops=3))
    squares = packed_set(
        [drawn(number) for number in range(4)], Prep(pack=Pack(resolution=16, format="png")), "squares"
    )
    for resolution in (16, 8):
        with pytest.raises(UsageError, match=r"--crops 3 would store equal copies: the pictures of .*squares have the"):
            encode.encode(squares, tmp_path / "out", replace(plain, resolution=resolution, crops=3))
    assert not (tmp_path / "out").exists()
    assert encode.encode(squares, tmp_path / "out", replace(plain, resolution=16)).samples == 4
