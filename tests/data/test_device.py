from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.data.device import on_device
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches

DEVICES = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_every_batch_arrives_whole_and_closing_ends_the_reading(
    device: torch.device, tmp_path: Path, latent_set: Callable[..., Path]
) -> None:
    part = Slice(total=8, micro=4, rank=0, size=1)
    with LatentSet(str(latent_set(tmp_path / "a", (9, 5, 10)))) as one:
        course = Course(
            sources=(Source(name="a", sizes=one.manifest.sizes),), seed=1, window=2, lanes=1, total=part.total
        )
        plain = batches(LatentReader([one]), course, part, 0, Ahead(), Quarantine())
        expected = [[batch.moments.clone() for batch in next(plain)] for _ in range(20)]
        plain.close()
        source = batches(LatentReader([one]), course, part, 0, Ahead(), Quarantine())
        moved = on_device(source, device)
        for step in expected:
            found = next(moved)
            assert [batch.moments.device.type for batch in found] == [device.type] * 2
            assert all(torch.equal(batch.moments.cpu(), there) for batch, there in zip(found, step, strict=True))
        moved.close()
        with pytest.raises(StopIteration):
            next(source)
