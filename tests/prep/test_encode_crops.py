"""Sets of several crops: what is recorded of them, what is refused, what is said."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.numpy
import webdataset
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest
from bigdiff.data.foreign import index_folder
from bigdiff.prep import encode, folder
from bigdiff.prep.latent_figures import strange
from bigdiff.prep.latent_settings import Settings

ImageSet = Callable[..., Path]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, least_psnr=-99.0, crops=3)


def test_the_manifest_says_how_many_crops_and_of_how_many_pictures(
    image_set: ImageSet, settings: Settings, tmp_path: Path
) -> None:
    images = image_set(7, 3)
    made = encode.encode(images, tmp_path / "out", settings)
    plain = encode.encode(images, tmp_path / "plain", replace(settings, crops=1))
    assert made.contract == plain.contract | {"crops": 3}
    added = made.lineage.pop("cropped")
    assert made.lineage == plain.lineage, "the figures are of the centre"
    records = [(row, 24 + shard) for shard, count in enumerate((7, 3)) for row in range(count)]
    assert added == sum(max(20 + row, tall) * 8 // min(20 + row, tall) > 8 for row, tall in records)
    two = encode.encode(images, tmp_path / "two", replace(settings, workers=2))
    assert (tmp_path / "two" / manifest.NAME).read_bytes() == (tmp_path / "out" / manifest.NAME).read_bytes()
    assert two.shards == made.shards


@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 5), (1, 3)])
@pytest.mark.parametrize("finished", [True, False])
def test_an_output_of_another_number_is_refused(
    image_set: ImageSet, settings: Settings, tmp_path: Path, before: int, after: int, finished: bool
) -> None:
    images, out = image_set(3), tmp_path / "out"
    made = encode.encode(images, out, replace(settings, crops=before))
    if not finished:  # as a kill before the manifest leaves it
        (out / encode.WORK).mkdir()
        recorded = {"contract": made.contract, "lineage": made.lineage}
        encode.write_json(out / encode.WORK / encode.SETTINGS, recorded)
        (out / manifest.NAME).unlink()
    said = {1: "'absent'", 3: "3"}[before], {1: "None", 3: "3", 5: "5"}[after]
    with pytest.raises(UsageError, match=f"crops is {said[0]} in the set, {said[1]} is needed"):
        encode.encode(images, out, replace(settings, crops=after))


def test_pictures_without_room_are_stored_as_equal_copies_and_that_is_said(settings: Settings, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for number in range(3):
        Image.new("RGB", (30 + number, 30 + number), (90, number, 30)).save(drawn / f"{number}.png")
    folder.pack(drawn, tmp_path / "images", 9, 0, lambda line: None)
    made = encode.encode(tmp_path / "images", tmp_path / "out", settings)
    assert made.lineage["cropped"] == 0
    (said,) = strange(made)
    assert said.startswith("--crops stored 3 equal copies of each picture")
    for sample in webdataset.WebDataset(str(tmp_path / "out" / "00000.tar"), shardshuffle=False, empty_check=False):
        tensors = safetensors.numpy.load(sample["safetensors"])
        assert (tensors["crops"] == tensors["moments"]).all()


def test_tars_that_someone_else_wrote_have_room(image_set: ImageSet, settings: Settings, tmp_path: Path) -> None:
    images = image_set(7)
    for own in (*images.glob("*.parquet"), images / manifest.NAME):
        own.unlink()
    index_folder(images, tmp_path / "indexed", 1, False, lambda line: None)
    made = encode.encode(tmp_path / "indexed", tmp_path / "out", settings)
    assert made.lineage["cropped"] == 2 and strange(made) == []
    content = json.loads((tmp_path / "out" / manifest.NAME).read_text())
    assert (content["contract"]["crop"], content["contract"]["crops"]) == ("center", 3)
