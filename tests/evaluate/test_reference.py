import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import FEATURES, Evaluation, Judges
from bigdiff.evaluate import networks, reference
from bigdiff.evaluate.networks import CMMD, INCEPTION
from bigdiff.evaluate.reference import Reference
from bigdiff.runtime import world as worlds
from bigdiff.runtime.workers import Workers
from bigdiff.runtime.world import World

COUNT = 6


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield worlds.enter(60)
    worlds.leave()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, random_inception: Path, tiny_clip: str) -> Evaluation:
    folder = tmp_path_factory.mktemp("reference")
    (folder / "real").mkdir()
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
        Image.fromarray(pixels).resize((60, 40)).save(folder / "real" / f"{number}.png")
    return Evaluation(
        output=folder / "out",
        judges=Judges(inception=str(random_inception), cmmd_clip=tiny_clip),
        pictures=folder / "drawn",
        real=str(folder / "real"),
        cache=folder / "cache",
        few_images=True,
    )


@pytest.fixture(scope="module")
def made(wanted: Evaluation, world: World) -> Reference:
    return prepare(wanted, world)


def prepare(wanted: Evaluation, world: World) -> Reference:
    return reference.prepare(wanted, networks.loaded(wanted.judges).fingerprint, world, Workers(1))


def test_it_is_what_the_networks_see_in_the_squares(made: Reference, wanted: Evaluation) -> None:
    shown = [Image.open(file).crop((10, 0, 50, 40)) for file in sorted(Path(wanted.real).iterdir())]
    seen = networks.loaded(wanted.judges).of(shown, [])
    for name in (INCEPTION, CMMD):
        found = made.features(name)
        assert found is not None
        torch.testing.assert_close(found, seen[name], rtol=1e-4, atol=1e-5)
    assert made.gaussian is not None and made.gaussian.count == COUNT
    np.testing.assert_allclose(made.gaussian.mean, seen[INCEPTION].double().mean(0), rtol=1e-4, atol=1e-6)
    assert made.features("clip_cosine") is None
    assert (made.about["count"], made.about["crop"]) == (COUNT, "center")


def test_it_is_made_once_and_found_by_pictures_networks_and_crop(
    made: Reference, wanted: Evaluation, world: World, tmp_path: Path
) -> None:
    assert made.folder is not None
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    moved = Path(shutil.copytree(wanted.real, tmp_path / "moved"))
    again = prepare(replace(wanted, real=str(moved), output=tmp_path / "out"), world)
    assert again.folder == made.folder
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before
    of_clip = replace(wanted, judges=replace(wanted.judges, inception=""))
    assert prepare(of_clip, world).folder != made.folder
    assert prepare(replace(of_clip, real_crop="none"), world).folder != prepare(of_clip, world).folder
    larger = Path(shutil.copytree(moved, tmp_path / "larger"))
    (larger / "more.png").write_bytes((moved / "0.png").read_bytes())
    other = prepare(replace(of_clip, real=str(larger), cache=None, output=tmp_path / "out"), world)
    assert other.count == COUNT + 1 and other.folder is not None and other.folder.parent == tmp_path / "out" / "real"


def test_a_kept_one_takes_the_place_of_its_pictures(made: Reference, wanted: Evaluation, world: World) -> None:
    found = prepare(replace(wanted, real=str(made.folder), cache=None), world)
    assert found.about == made.about and found.gaussian is not None and made.gaussian is not None
    torch.testing.assert_close(found.gaussian.covariance, made.gaussian.covariance, rtol=0, atol=0)
    legacy = replace(wanted, real=str(made.folder), judges=replace(wanted.judges, resize="legacy"))
    with pytest.raises(UsageError, match=r"was seen by another inception network .*resize clean; here .*resize legacy"):
        prepare(legacy, world)
    with pytest.raises(UsageError, match=f"are {COUNT} pictures, whose covariance"):
        prepare(replace(wanted, real=str(made.folder), few_images=False), world)


def test_a_stop_in_the_middle_is_gone_on_from(
    made: Reference, wanted: Evaluation, world: World, tmp_path: Path
) -> None:
    """about.json comes last: without it the statistics are made again, of the blocks that are there."""
    assert made.folder is not None
    copied = shutil.copytree(made.folder, tmp_path / made.folder.name)
    (block,) = copied.glob("0*.safetensors")
    at = block.stat().st_mtime_ns
    for name in (reference.ABOUT, reference.STATISTICS):
        (copied / name).unlink()
    found = prepare(replace(wanted, cache=tmp_path), world)
    assert found.folder == copied and block.stat().st_mtime_ns == at
    assert found.about == made.about and found.gaussian is not None and made.gaussian is not None
    torch.testing.assert_close(found.gaussian.mean, made.gaussian.mean, rtol=0, atol=0)


def test_statistics_of_other_programs_are_read(wanted: Evaluation, world: World, tmp_path: Path) -> None:
    of_inception = replace(wanted, judges=replace(wanted.judges, cmmd_clip=""), cache=None)
    mean, covariance = np.arange(FEATURES) / FEATURES, np.eye(FEATURES)
    np.savez(tmp_path / "coco.npz", mu=mean, sigma=covariance)
    found = prepare(replace(of_inception, real=str(tmp_path / "coco.npz")), world)
    assert found.gaussian is not None and found.features(INCEPTION) is None
    np.testing.assert_array_equal(found.gaussian.mean, mean)
    assert json.loads(json.dumps(found.about)) == found.about
    with pytest.raises(UsageError, match="--cmmd-clip needs the pictures"):
        prepare(replace(wanted, real=str(tmp_path / "coco.npz")), world)
    np.savez(tmp_path / "small.npz", mu=mean[:64], sigma=covariance[:64, :64])
    np.savez(tmp_path / "other.npz", mean=mean)
    np.savez(tmp_path / "code.npz", mu=np.array([{}], dtype=object), sigma=covariance)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "coco.npz").read_bytes()[:5000])
    for name, sentence in (
        ("small", r"has mu of shape \[64\]"),
        ("other", "cannot be read as mu and sigma"),
        ("code", "cannot be read as mu and sigma"),
        ("cut", "cannot be read as mu and sigma"),
        ("absent", "cannot be read as mu and sigma"),
    ):
        with pytest.raises(UsageError, match=sentence):
            prepare(replace(of_inception, real=str(tmp_path / f"{name}.npz")), world)


def test_another_about_json_is_not_taken_for_one(wanted: Evaluation, world: World, tmp_path: Path) -> None:
    (tmp_path / "about.json").write_text('{"kind": "a story"}')
    with pytest.raises(UsageError, match=r"its about\.json is not that of an evaluation's real set"):
        prepare(replace(wanted, real=str(tmp_path)), world)
