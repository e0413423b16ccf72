"""Whole pictures from a web server to shards, to latents of several crops, and to training that draws its crops."""

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
import webdataset
from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.data import manifest
from bigdiff.data.damage import Quarantine
from bigdiff.data.pixels import Frame, cover, cropped
from bigdiff.prep import encode, latent_settings
from bigdiff.prep.latent_settings import Asked
from bigdiff.runtime.world import World
from bigdiff.train import data

ROOT = Path(__file__).resolve().parents[2]
SIDE = 24
SIZES = [(60, 40), (40, 64), (48, 48), (90, 30)]
CONFIG = f"""
download: {{processes: 1, threads: 4, retries: 0, allow_private_addresses: true}}
pack: {{resolution: {SIDE}, format: png, samples_per_shard: 6, processes: 1}}
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def drawn(number: int) -> Image.Image:
    small = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(small).resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)


def build(root: Path, name: str, *overrides: str) -> Path:
    door = [sys.executable, str(ROOT / "data_prep" / "build_shards.py"), "--config", str(root / "prep.yaml")]
    words = [*door, "--input", str(root / "meta.parquet"), "--output", str(root / name), *overrides]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the sets `whole` and `square` of twelve pictures; a thirteenth is one line, 3,000 pixels long."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "web").mkdir()
    for number in range(12):
        drawn(number).save(folder / "web" / f"{number}.png")
    Image.new("RGB", (3_000, 1)).save(folder / "web" / "12.png")
    (folder / "prep.yaml").write_text(CONFIG)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder / "web"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}/{number}.png" for number in range(13)]
        rows = {"URL": urls, "TEXT": [f"picture {number} of a thing" for number in range(13)]}
        pq.write_table(pa.table(rows), folder / "meta.parquet")
        build(folder, "whole", "pack.crop=none")
        build(folder, "square")
        server.shutdown()
    yield folder


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """{caption: row of the index, with the stored pixels}."""
    found = {}
    for file in sorted(folder.glob("*.parquet")):
        content = file.with_suffix(".tar").read_bytes()
        for row in pq.read_table(file).to_pylist():
            stored = content[row["png_offset"] :][: row["png_length"]]
            found[row["caption"]] = {**row, "pixels": np.asarray(Image.open(io.BytesIO(stored)))}
    return found


def test_pictures_are_stored_whole_and_what_cannot_be_is_counted(root: Path) -> None:
    whole, square = samples(root / "whole"), samples(root / "square")
    assert whole.keys() == {f"picture {number} of a thing" for number in range(12)}
    for number in range(12):
        row = whole[f"picture {number} of a thing"]
        pixels = cover(np.array(drawn(number)), SIDE, SIDE)
        assert np.array_equal(row["pixels"], pixels)
        assert (row["height"], row["width"]) == pixels.shape[:2] and min(pixels.shape[:2]) == SIDE
        centre = cropped(pixels, Frame(width=SIDE, height=SIDE))
        assert np.array_equal(square[row["caption"]]["pixels"], centre)
    made, plain = (manifest.read(root / name, "images") for name in ("whole", "square"))
    assert made.contract == {**plain.contract, "crop": "none"}
    settings = plain.lineage["settings"]
    assert made.lineage["settings"] == {**settings, "pack": {**settings["pack"], "crop": "none"}}
    assert made.buckets == ("", "") and [shard.samples for shard in made.shards] == [6, 6]
    page = (root / "whole" / "report" / "index.html").read_text()
    assert "too long and narrow to be stored whole" in page
    assert f"samples, whole, the shorter side {SIDE}" in page


def test_their_latents_are_of_several_crops(root: Path, toy: Path, tmp_path: Path) -> None:
    stage, asked = load_stage(str(toy / "stage.yaml")), Asked(workers=1, least_psnr=-99.0)
    settings = latent_settings.of_stage(stage, replace(asked, crops=3))
    made = encode.encode(root / "whole", tmp_path / "latents", settings)
    assert made.lineage["cropped"] == 9, "all but those that are square"
    shapes = {row["key"]: row["pixels"].shape[:2] for row in samples(root / "whole").values()}
    for tar in sorted((tmp_path / "latents").glob("*.tar")):
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False):
            tensors = safetensors.numpy.load(sample["safetensors"])
            first, last = tensors["crops"]
            equal = np.array_equal(first, tensors["moments"]) and np.array_equal(last, tensors["moments"])
            assert equal == (shapes.pop(sample["__key__"]) == (SIDE, SIDE))
    assert not shapes
    with pytest.raises(UsageError, match=r"from whole pictures \(pack\.crop=none of build_shards\.py\)"):
        encode.encode(root / "square", tmp_path / "of-squares", settings)
    plain = encode.encode(root / "square", tmp_path / "plain", latent_settings.of_stage(stage, asked))
    assert "crops" not in plain.contract


def test_training_draws_its_crops_of_them(root: Path, toy: Path) -> None:
    """At the stored resolution: every crop lies in the picture that was fetched, from its one end to the other."""
    stage = load_stage(
        str(toy / "stage.yaml"),
        ["data.latents=", f"data.images={root}/whole", "data.crop=random", f"resolution={SIDE}", "batch.total=48"],
    )
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    places: dict[str, set[int]] = {}
    with data.opened(stage.data) as sets:
        stream = data.stream(stage, world, sets, data.course(stage, sets), 0, Quarantine())
        for _ in range(8):
            for batch in next(stream):
                for caption, picture in zip(batch.captions, batch.pixels.permute(0, 2, 3, 1).numpy(), strict=True):
                    places.setdefault(caption, set()).add(place(caption, picture))
        stream.close()
    assert len(places) == 12
    for number in range(12):
        found = places[f"picture {number} of a thing"]
        height, width = cover(np.array(drawn(number)), SIDE, SIDE).shape[:2]
        room = height + width - 2 * SIDE
        assert found <= {*range(room + 1)}
        assert len(found) >= min(room + 1, 8), "drawn anew at each visit"


def place(caption: str, shown: np.ndarray) -> int:
    """Where the crop begins along the longer side."""
    whole = cover(np.array(drawn(int(caption.split()[1]))), SIDE, SIDE)
    height, width, _ = whole.shape
    for begin in range(height + width - 2 * SIDE + 1):
        left, top = (begin, 0) if width > height else (0, begin)
        if np.array_equal(whole[top : top + SIDE, left : left + SIDE], shown):
            return begin
    raise AssertionError(f"{caption}: no crop of the whole picture")
