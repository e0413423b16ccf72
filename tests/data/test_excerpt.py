from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bigdiff.config.errors import RunError
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.data.excerpt import first
from bigdiff.data.images import Framing, ImageReader, ImageSet
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches

FRAMING = Framing(resolution=16, crop="random", flip=0.5, seed=3)


def course(images: ImageSet, total: int) -> Course:
    source = Source(name="a", sizes=images.manifest.sizes, buckets=images.manifest.buckets)
    return Course(sources=(source,), seed=3, window=2, lanes=1, total=total)


@pytest.mark.parametrize("count", [1, 5, 12, 70])
def test_they_are_what_the_stream_gives_first(image_set: Callable[..., Path], count: int) -> None:
    with ImageSet(str(image_set(7, 9, 8))) as images:
        reader, path = ImageReader([images], FRAMING), course(images, 6)
        found = list(first(reader, path, count))
        assert all(len(some) <= 64 for some in found)
        part = Slice(total=6, micro=6, rank=0, size=1)
        stream = batches(reader, path, part, 0, Ahead(), Quarantine(warn=lambda line: None))
        expected = [next(stream)[0].pixels.clone() for _ in range(-(-count // 6))]
        stream.close()
    assert torch.equal(torch.cat(found), torch.cat(expected)[:count])


def test_what_cannot_be_read_is_left_out(image_set: Callable[..., Path]) -> None:
    folder = image_set(4, 4)
    tar = folder / "00000.tar"
    content = bytearray(tar.read_bytes())
    with ImageSet(str(folder)) as images:
        reader, path = ImageReader([images], FRAMING), course(images, 8)
        whole = torch.cat(list(first(reader, path, 8)))
        assert len(whole) == 8
    content[600:700] = bytes(100)  # within the first picture
    tar.write_bytes(content)
    with ImageSet(str(folder)) as images:
        rest = torch.cat(list(first(ImageReader([images], FRAMING), path, 8)))
    assert len(rest) == 7
    assert all(any(torch.equal(one, other) for other in whole) for one in rest)


def test_a_set_that_cannot_be_read_at_all_is_said(image_set: Callable[..., Path]) -> None:
    folder = image_set(4)
    (folder / "00000.tar").write_bytes(bytes(20480))
    with ImageSet(str(folder)) as images, pytest.raises(RunError, match="none of the first 4 pictures"):
        list(first(ImageReader([images], FRAMING), course(images, 4), 4))
