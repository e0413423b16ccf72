"""Training on pictures of several shapes: latents and pictures agree, on one process and on two, stopped or not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigdiff.checkpoint import layout
from bigdiff.config.load import load_stage
from bigdiff.data import manifest
from bigdiff.prep import encode, folder, latent_settings
from bigdiff.prep.latent_settings import Asked
from bigdiff.train import data

TrainAll = Callable[..., list[str]]
BUCKETS = {"8x8": 24, "16x4": 19, "4x16": 11}  # samples: not all are a multiple of a batch
ROUNDING = 3e-4  # relative: what a set stores is rounded to float16
ON, FLIP = "data.buckets=true", "data.flip=0.5"


def bucketed(root: Path) -> Path:
    """An image set of pictures in their buckets' shapes, without symmetry."""
    images = root / "images"
    images.mkdir()
    shards = []
    for number, (bucket, count) in enumerate(BUCKETS.items()):
        width, height = map(int, bucket.split("x"))
        drawn, packed = root / f"drawn-{bucket}", root / f"packed-{bucket}"
        drawn.mkdir()
        for each in range(count):
            small = np.random.default_rng([number, each]).integers(0, 256, (3, 4, 3), np.uint8)
            Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(drawn / f"{each:03d}.png")
            (drawn / f"{each:03d}.txt").write_text(f"picture {each} of {number}")
        folder.pack(drawn, packed, 16, 0, lambda _: None)
        found = manifest.read(packed, "images")
        for one in found.shards:
            name = f"{bucket}-{one.name}"
            for ending in (".tar", found.index):
                shutil.copy(packed / f"{one.name}{ending}", images / f"{name}{ending}")
            shards.append(replace(one, name=name, bucket=bucket))
    manifest.write(images, replace(found, shards=tuple(shards)))
    return images


@pytest.fixture(scope="module")
def trained(train_all: TrainAll, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with both kinds of set and runs on them, and what was refused."""
    root = tmp_path_factory.mktemp("buckets")
    images = bucketed(root)
    stage = load_stage(str(toy / "stage.yaml"), [ON, FLIP])
    encode.encode(images, root / "latents", latent_settings.of_stage(stage, Asked(workers=1, least_psnr=-99.0)))
    few = [str(toy / "stage.yaml"), f"runs={root}/runs", "steps=12", "optim.warmup_steps=2", "checkpoint.every=6"]
    latents, pictures = [f"data.latents={root}/latents", ON], ["data.latents=", f"data.images={images}", ON]
    jobs = [
        [*few, "name=on-latents", *latents],
        [*few, "name=on-pictures", *pictures],
        [*few, "name=flipped", *latents, FLIP],
        [*few, "name=flipped-pictures", *pictures, FLIP],
        [*few, "name=stopped", *latents, "steps=6"],
        [*few, "name=stopped", *latents],
        [*few, "name=one-shape", *latents[:1]],
        [*few, "name=one-shape-pictures", *pictures[:2]],
        [*few, "name=no-buckets", ON],
        [*few, "name=larger", *latents, "resolution=16"],
        [*few, "name=smaller-pictures", *pictures, "resolution=4"],
    ]
    train_all([[*few, "name=two", *latents], [*few, "name=two-pictures", *pictures]], 2)
    return root, train_all(jobs)


def losses(root: Path, name: str) -> list[float]:
    lines = (root / "runs" / name / layout.METRICS).read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def test_latents_of_all_shapes_give_the_losses_of_their_pictures(trained: tuple[Path, list[str]], toy: Path) -> None:
    root, _ = trained
    stage = load_stage(str(toy / "stage.yaml"), [f"data.latents={root}/latents", ON])
    with data.opened(stage.data) as sets:
        assert {data.course(stage, sets).bucket_of(step) for step in range(12)} == {*BUCKETS}
    assert len(losses(root, "on-latents")) == 12
    assert losses(root, "on-latents") == pytest.approx(losses(root, "on-pictures"), rel=ROUNDING)
    assert losses(root, "flipped") == pytest.approx(losses(root, "flipped-pictures"), rel=ROUNDING)
    assert losses(root, "flipped") != pytest.approx(losses(root, "on-latents"), rel=3 * ROUNDING)
    assert manifest.read(root / "latents", "latents").contract["buckets"]["16x4"] == [4, 2, 8]


def test_two_processes_are_in_one_bucket_and_give_the_losses_of_one(trained: tuple[Path, list[str]]) -> None:
    root, _ = trained
    assert losses(root, "two") == pytest.approx(losses(root, "on-latents"), rel=1e-5)
    assert losses(root, "two-pictures") == pytest.approx(losses(root, "on-pictures"), rel=1e-5)


def test_a_run_that_stops_between_two_buckets_goes_on_as_if_it_had_not(trained: tuple[Path, list[str]]) -> None:
    root, _ = trained
    assert losses(root, "stopped") == losses(root, "on-latents")


def test_sets_of_other_shapes_than_the_stage_takes_are_refused(trained: tuple[Path, list[str]]) -> None:
    root, refused = trained
    assert [line.split()[1] for line in refused] == [
        "one-shape",
        "one-shape-pictures",
        "no-buckets",
        "larger",
        "smaller-pictures",
    ]
    assert all("have buckets of several shapes: set data.buckets=true" in line for line in refused[:2])
    assert "have no buckets: set data.buckets=false" in refused[2]
    assert "has 64 pixels, resolution=16 asks for 256 at most and half of that at least" in refused[3]
    assert "has 64 pixels, resolution=4 asks for 16 at most" in refused[4]
    assert not (root / "runs" / "larger" / layout.METRICS).exists()
