import io
import tarfile

import numpy as np
import pytest

from bigdiff.config.load import load_stage
from bigdiff.data import member
from bigdiff.models import flops
from bigdiff.plan.room import most_bytes
from bigdiff.plan.storage import Pictures, hours, in_tar, latent_bytes, storage

STAGE = load_stage("512px")


@pytest.mark.parametrize("name", ["256px", "512px"])
def test_a_latent_takes_what_it_takes_in_a_tar(name: str) -> None:
    stage = load_stage(name)
    side, samples = stage.latent_size, 7
    content = member.pack(np.zeros((8, side, side), np.float16), np.zeros(77, np.uint16))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(samples):
            found = tarfile.TarInfo(f"{number:09d}.safetensors")
            found.size = len(content)
            archive.addfile(found, io.BytesIO(content))
        assert archive.offset == samples * latent_bytes(stage)


def test_sizes_around_a_tars_block() -> None:
    assert [in_tar(size) for size in (0, 1, 512, 513)] == [512, 1024, 1024, 1536]


def test_encoding_is_counted_as_published_counts_have_it() -> None:
    """KL-f8's encoder: 0.273 TFLOP at 256 px, 1.117 at 512."""
    assert flops.encoding(load_stage("256px")) == pytest.approx(0.273e12, rel=0.005)
    assert flops.encoding(STAGE) == pytest.approx(1.117e12, rel=0.005)


def test_what_a_number_of_pictures_takes() -> None:
    found = storage(STAGE, 859_520_964, Pictures(samples=1000, kilobytes=100.0))
    assert found.checkpoints == most_bytes(STAGE, 859_520_964)
    assert found.latents == 1000 * latent_bytes(STAGE) == pytest.approx(1000 * 2 * 8 * 64 * 64, rel=0.02)
    assert found.pictures == 1000 * in_tar(100_000)
    # at 40 % of 1e15 FLOP/s, 1000 pictures of 1.117 TFLOP
    assert hours(found, 1000, 1e15) == pytest.approx(1000 * 1.117e12 / 0.4e15 / 3600, rel=0.005)


def test_nothing_is_said_of_what_is_not_known_or_not_there() -> None:
    found = storage(STAGE, 10, Pictures())
    assert (found.pictures, found.latents, found.encoding) == (0, 0, 0)
    on_pictures = load_stage("pictures-128px")
    assert storage(on_pictures, 10, Pictures(samples=5)).latents == 0
