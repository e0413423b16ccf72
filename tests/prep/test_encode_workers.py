import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest
from bigdiff.prep import encode, encode_workers
from bigdiff.prep.encoder import load
from bigdiff.prep.latent_settings import Settings
from bigdiff.runtime.files import write_json
from bigdiff.runtime.workers import Workers

ImageSet = Callable[..., Path]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_any_number_of_workers_gives_the_same_bytes(
    image_set: ImageSet, settings: Settings, toy: Path, tmp_path: Path
) -> None:
    images = image_set(9, 5, 7)
    settings = replace(settings, mirrored=True, text_encoder=str(toy / "text_encoder"))
    one, two, nine = (tmp_path / name for name in ("one", "two", "nine"))
    made = [
        encode.encode(images, folder, replace(settings, workers=n)) for n, folder in ((1, one), (2, two), (9, nine))
    ]
    assert made[0] == made[1] == made[2] == manifest.read(one, "latents")
    assert made[0].sizes.tolist() == [9, 5, 7]
    names = [f"{number:05d}.{end}" for number in range(3) for end in ("parquet", "tar")]
    assert sorted(content(one)) == [*names, "empty.safetensors", "manifest.json"]
    assert content(one) == content(two) == content(nine)


def test_processes_that_load_the_networks_themselves_give_the_same_bytes(
    image_set: ImageSet, settings: Settings, tmp_path: Path
) -> None:
    """As beside several GPUs."""
    images, one, many = image_set(5, 3, 4), tmp_path / "one", tmp_path / "many"
    settings = replace(settings, precision="fp16")
    made = encode.encode(images, one, replace(settings, workers=1))
    encoder = load(settings)
    plan = encode.prepare(images, many, settings, encoder)
    write_json(many / encode_workers.WORK / encode.SETTINGS, plan.recorded)
    with Workers(2) as processes:
        records = encode_workers.on_devices(plan, settings, processes)
    assert [records[f"{number:05d}"].sha256 for number in range(3)] == [shard.sha256 for shard in made.shards]
    again = encode.encode(images, many, settings)  # finds them finished
    assert again == made and content(one) == content(many)
    assert made.lineage["precision"] == "fp16" and len(made.lineage["rounding"]) == 3
    with pytest.raises(UsageError, match="precision is 'fp16' in the set, 'fp32' is needed"):
        encode.encode(images, many, replace(settings, precision="fp32"))


def test_a_workers_error_is_the_commands(image_set: ImageSet, settings: Settings, tmp_path: Path) -> None:
    images = image_set(3, 3)
    file = images / "00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["caption"]), file)
    with pytest.raises(UsageError, match=r"00001\.parquet has no column 'caption'"):
        encode.encode(images, tmp_path / "out", replace(settings, workers=2))
    assert multiprocessing.active_children() == []
