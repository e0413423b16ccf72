from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from bigdiff.config.evaluation import BLOCK, FEATURES
from bigdiff.evaluate import blocks
from bigdiff.evaluate.cmmd import cmmd
from bigdiff.evaluate.frechet import Sums, squared_distance
from bigdiff.evaluate.networks import CMMD, COSINE, INCEPTION
from bigdiff.evaluate.point import Point, judge, write_scores
from bigdiff.evaluate.precision_recall import precision_recall
from bigdiff.evaluate.reference import Reference
from bigdiff.runtime import world as worlds
from bigdiff.runtime.world import World

COUNT = BLOCK + 5
NAMES = (INCEPTION, CMMD, COSINE)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield worlds.enter(60)
    worlds.leave()


def features(seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        INCEPTION: torch.rand(COUNT, 8, generator=random) + 0.1 * seed,
        CMMD: torch.nn.functional.normalize(torch.randn(COUNT, 4, generator=random) + seed, dim=1),
        COSINE: torch.linspace(-0.1, 0.4, COUNT, dtype=torch.float64),
    }


def stored(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True)
    found = features(seed)
    for begin, end in blocks.cut(COUNT):
        part = {name: values[begin:end].contiguous() for name, values in found.items()}
        save_file(part, blocks.file(folder, begin, end))
    return found


def test_the_numbers_are_those_of_the_whole_sets(world: World, tmp_path: Path) -> None:
    real, drawn = stored(tmp_path / "real", 0), stored(tmp_path / "drawn", 1)
    gaussian = Sums.of(real[INCEPTION]).gaussian()
    reference = Reference(
        about={"networks": {INCEPTION: "", CMMD: ""}}, gaussian=gaussian, folder=tmp_path / "real", count=COUNT
    )
    found = judge(tmp_path / "drawn", NAMES, reference, world, Point(guidance=3.0, images=COUNT))
    assert found.fid == pytest.approx(squared_distance(gaussian, Sums.of(drawn[INCEPTION]).gaussian()), rel=1e-9)
    assert found.cmmd == pytest.approx(cmmd(real[CMMD], drawn[CMMD]), rel=1e-9)
    shares = precision_recall(real[INCEPTION], drawn[INCEPTION])
    assert (found.precision, found.recall) == (shares.precision, shares.recall)
    assert found.clip_cosine == pytest.approx(0.15)
    assert found.clip_score == pytest.approx(float(2.5 * drawn[COSINE].clamp(min=0).mean()))
    assert found.clip_score > 2.5 * found.clip_cosine
    assert found.singular and COUNT <= FEATURES
    assert found.tags == {
        "eval/fid": found.fid,
        "eval/clip_score": found.clip_score,
        "eval/cmmd": found.cmmd,
        "eval/precision": found.precision,
        "eval/recall": found.recall,
    }


def test_statistics_alone_give_fid_alone(world: World, tmp_path: Path) -> None:
    drawn = stored(tmp_path / "drawn", 1)
    gaussian = Sums.of(features(0)[INCEPTION]).gaussian()
    reference = Reference(about={"networks": {}}, gaussian=gaussian)
    found = judge(tmp_path / "drawn", (INCEPTION,), reference, world, Point(guidance=None, images=COUNT))
    assert found.fid == pytest.approx(squared_distance(gaussian, Sums.of(drawn[INCEPTION]).gaussian()), rel=1e-9)
    assert found.tags.keys() == {"eval/fid"}


def test_without_a_real_set_there_is_the_score_alone(world: World, tmp_path: Path) -> None:
    stored(tmp_path / "drawn", 1)
    found = judge(tmp_path / "drawn", (COSINE,), None, world, Point(guidance=None, images=COUNT))
    assert found.tags.keys() == {"eval/clip_score"} and not found.singular


def test_each_picture_has_its_row(tmp_path: Path) -> None:
    stored(tmp_path / "drawn", 1)
    write_scores(tmp_path / "scores.parquet", tmp_path / "drawn", COUNT, [f"p{row}" for row in range(COUNT + 9)])
    table = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert table["index"] == list(range(COUNT)) and table["prompt"][COUNT - 1] == f"p{COUNT - 1}"
    np.testing.assert_allclose(table["clip_cosine"], np.linspace(-0.1, 0.4, COUNT))
    np.testing.assert_allclose(table["clip_score"], 2.5 * np.maximum(np.linspace(-0.1, 0.4, COUNT), 0))
