import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bigdiff.config.errors import RunError
from bigdiff.config.evaluation import BLOCK, Judges
from bigdiff.evaluate import blocks, networks
from bigdiff.evaluate.blocks import Work
from bigdiff.evaluate.networks import CMMD
from bigdiff.evaluate.pictures import Stored
from bigdiff.runtime import world as worlds
from bigdiff.runtime.workers import Workers

COUNT = 2 * BLOCK + 3


@pytest.fixture
def works(tmp_path: Path, tiny_clip: str) -> list[Work]:
    (tmp_path / "set").mkdir()
    for number in range(COUNT):
        Image.new("RGB", (9, 8), (number, 255 - number, 50)).save(tmp_path / "set" / f"{number:03d}.png")
    source = Stored(place=str(tmp_path / "set"))
    return [
        Work(folder=tmp_path / "out", source=source, judges=Judges(cmmd_clip=tiny_clip), begin=begin, end=end)
        for begin, end in blocks.cut(COUNT)
    ]


def make(works: list[Work]) -> None:
    world = worlds.enter(60)
    try:
        blocks.make(works, world, Workers(1), "test")
    finally:
        worlds.leave()


def test_blocks_cover_the_set_once() -> None:
    for count in (0, 1, BLOCK, BLOCK + 1, COUNT):
        spans = blocks.cut(count)
        assert [at for begin, end in spans for at in range(begin, end)] == list(range(count))
        assert all(end - begin <= BLOCK for begin, end in spans)


def test_what_is_read_is_what_the_networks_see(works: list[Work]) -> None:
    make(works)
    found = blocks.read(works[0].folder, CMMD, blocks.cut(COUNT))
    assert found.shape == (COUNT, 768)
    seen = networks.loaded(works[0].judges).of([Image.new("RGB", (9, 8), (BLOCK + 1, 254 - BLOCK, 50))], [])
    torch.testing.assert_close(found[BLOCK + 1 : BLOCK + 2], seen[CMMD], rtol=1e-4, atol=1e-5)


def test_only_what_is_not_there_is_made(works: list[Work]) -> None:
    make(works)
    paths = [blocks.file(one.folder, one.begin, one.end) for one in works]
    content = paths[1].read_bytes()
    paths[1].unlink()
    (paths[1].parent / f"{paths[1].name}.7.tmp").write_bytes(b"half of it")  # of a process that was killed
    before = [paths[number].stat().st_mtime_ns for number in (0, 2)]
    make(works)
    assert [paths[number].stat().st_mtime_ns for number in (0, 2)] == before
    assert paths[1].read_bytes() == content
    assert not list(paths[1].parent.glob("*.tmp"))


def test_a_damaged_block_is_named(works: list[Work], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LATE", 0.3)
    make(works[:2])
    path = blocks.file(works[0].folder, works[0].begin, works[0].end)
    with pytest.raises(RunError, match="does not hold inception of 64 pictures: delete it"):
        blocks.read(works[0].folder, "inception", blocks.cut(BLOCK))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"is damaged .*: delete it, and start again"):
        blocks.read(works[0].folder, CMMD, blocks.cut(BLOCK))
    with pytest.raises(RunError, match="is not seen here: is the folder shared by all"):
        blocks.read(works[0].folder, CMMD, blocks.cut(COUNT)[2:])


RANKS = """
import json, sys
from pathlib import Path
from bigdiff.evaluate import blocks
from bigdiff.runtime.world import enter, leave
world = enter(60)
found = blocks.gaussian(Path(sys.argv[1]), "inception", blocks.cut(int(sys.argv[2])), world)
world.barrier()
leave()
print(json.dumps([found.count, found.mean.tolist(), found.covariance.tolist()]))
"""


@pytest.mark.parametrize("size", [1, 3])
def test_any_number_of_ranks_has_the_same_gaussian(
    run_ranks: Callable[..., list[str]], tmp_path: Path, size: int
) -> None:
    """Of two blocks: one of three ranks has none."""
    count = BLOCK + 6
    features = torch.randn(count, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(5)
    for begin, end in blocks.cut(count):
        save_file({"inception": features[begin:end].contiguous()}, blocks.file(tmp_path, begin, end))
    for output in run_ranks(RANKS, size, str(tmp_path), str(count)):
        found, mean, covariance = json.loads(output.splitlines()[-1])
        assert found == count
        np.testing.assert_allclose(mean, features.double().mean(0), rtol=1e-6)
        np.testing.assert_allclose(covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-6, atol=1e-9)
