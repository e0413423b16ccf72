"""Sets that the packer made, through the encoder."""

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

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
