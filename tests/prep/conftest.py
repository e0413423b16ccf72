"""What earlier steps of a preparation leave behind, written by hand."""

import io
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from networks import tiny_clip as tiny_clip
from PIL import Image

from bigdiff.config.prep import Download, Pack, Prep
from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.data import manifest
from bigdiff.data.damage import Tombstones
from bigdiff.models import components
from bigdiff.prep.assemble import assemble
from bigdiff.prep.buckets import fit
from bigdiff.prep.encoder import Encoder
from bigdiff.prep.latent_settings import Settings
from bigdiff.prep.layout import Layout
from bigdiff.prep.pack import Task, write_shard
from bigdiff.prep.pipeline import contract
from bigdiff.prep.plan import Choice, plan
from bigdiff.prep.query import database
from bigdiff.prep.score import ready
from bigdiff.prep.verify import units, verify
from bigdiff.runtime.workers import Workers

# One row as a download leaves it: its bytes, the cause why there are none, or nothing: img2dataset lost it.
Fetched = bytes | str | None
Downloaded = Callable[..., Layout]


@pytest.fixture
def encoder(toy: Path) -> Encoder:
    """Of the toy's networks, without text states."""
    return Encoder(
        vae=components.load_vae(str(toy / "vae")),
        tokenizer=components.load_tokenizer(str(toy / "tokenizer"), 12),
        resolution=16,
        batch=4,
        device=torch.device("cpu"),
        threads=1,
        least_psnr=0.0,
    )


@pytest.fixture
def downloaded(tmp_path: Path) -> Downloaded:
    """Writes what selection and img2dataset write: one part, `size` rows a file, files in no order."""

    def write(
        rows: list[Fetched],
        captions: dict[int, str] | None = None,
        second: dict[int, Fetched] | None = None,
        size: int = 100,
    ) -> Layout:
        layout = Layout(tmp_path / "set")
        layout.work.mkdir(parents=True)
        numbers = list(range(len(rows)))
        selected = {
            "row": numbers,
            "url": [f"http://example.com/{number}" for number in numbers],
            "caption": [(captions or {}).get(number, f"caption {number}") for number in numbers],
            "aesthetic": [number / 7 for number in numbers],
        }
        pq.write_table(pa.table(selected), layout.selected)
        write_pass(layout.part(0) / "first", dict(enumerate(rows)), size)
        if second is not None:
            write_pass(layout.part(0) / "second", second, size)
        return layout

    return write


def write_pass(folder: Path, rows: dict[int, Fetched], size: int) -> None:
    folder.mkdir(parents=True)
    numbers = sorted(rows)
    asked = {"row": pa.array(numbers, pa.int64()), "url": [f"http://example.com/{number}" for number in numbers]}
    pq.write_table(pa.table(asked), folder / "rows.parquet")
    for first in range(0, len(numbers), size):
        known = {number: rows[number] for number in reversed(numbers[first : first + size]) if rows[number] is not None}
        facts = {
            "row": pa.array(list(known), pa.int64()),
            "key": [f"{number:09d}" for number in known],
            "status": ["success" if isinstance(row, bytes) else "failed_to_download" for row in known.values()],
            "error_message": pa.array([row if isinstance(row, str) else None for row in known.values()], pa.string()),
        }
        name = f"{first // size:05d}"
        pq.write_table(pa.table(facts), folder / f"{name}.parquet")
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for number, content in known.items():
                if isinstance(content, bytes):
                    member = tarfile.TarInfo(f"{number:09d}.jpg")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of the right structure with random weights, for each kind of scorer that needs some."""
    import torch

    from bigdiff.prep.scorers import heads, watermark

    torch.manual_seed(1)
    networks = {
        "aesthetic_v1": torch.nn.Linear(768, 1),
        "aesthetic_v2": heads.AestheticV2(),
        "nsfw": heads.Nsfw(),
        "watermark": watermark.build(),
    }
    for kind in ("aesthetic_v1", "aesthetic_v2", "nsfw"):  # wide enough for every weight to show in the score
        layers = [one for one in networks[kind].modules() if isinstance(one, torch.nn.Linear)]
        for number, layer in enumerate(layers):
            torch.nn.init.normal_(layer.weight, std=1.4 * layer.in_features**-0.5 if number else 1.0)
    with torch.no_grad():
        last = networks["watermark"].get_submodule("classifier.5")
        last.bias.copy_(torch.tensor([0.3, -0.9]))  # far enough from the middle for the order of the classes to show
        networks["nsfw"].norm.variance.fill_(0.25)
    folder = tmp_path_factory.mktemp("weights")
    for kind, network in networks.items():
        torch.save(network.state_dict(), folder / f"{kind}.pth")
    return {kind: folder / f"{kind}.pth" for kind in networks}


@pytest.fixture(scope="session")
def picture() -> Callable[[int], bytes]:
    """A PNG of soft colours for each number, unlike that of every other."""

    def draw(number: int) -> bytes:
        small = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "PNG")
        return buffer.getvalue()

    return draw


@pytest.fixture
def packed_set(downloaded: Downloaded, tmp_path: Path) -> Callable[..., Path]:
    """A finished image set of what was downloaded, as build_shards.py leaves it."""

    def make(rows: Sequence[Fetched], prep: Prep, name: str = "packed") -> Path:
        layout = downloaded(list(rows), size=7)
        prep = replace(prep, download=replace(prep.download, rows_per_file=7))
        for unit in units(layout, prep):
            verify(unit)
        scorers = ready(prep.score)
        choice = Choice(samples_per_shard=prep.pack.samples_per_shard, fit=fit(prep.pack), scoring=prep.score)
        with Workers(1) as workers:
            shards = assemble(layout, workers, choice, prep.score, prep.pack.format)
        lineage = {"scored": scorers}
        made = manifest.Manifest(kind="images", shards=shards, contract=contract(prep), lineage=lineage)
        manifest.write(layout.output, made)
        shutil.rmtree(layout.work)
        return layout.output.rename(tmp_path / name)

    return make


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A job whose shards are written, before its report: 24 samples with scores by hand, one of them a copy."""

    layout: Layout
    choice: Choice
    made: manifest.Manifest
    sharpness: dict[int, float]  # by row

    @contextmanager
    def base(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with database(self.layout.work / "duckdb", None) as base:
            yield base


@pytest.fixture
def judged(downloaded: Downloaded, picture: Callable[[int], bytes]) -> Judged:
    """Rows 5 and 23 are one picture, row 2 was taken down; sharpness is at least 5, below 20."""
    pictures: list[Fetched] = [picture(5 if number == 23 else number) for number in range(24)]
    layout = downloaded(pictures, {number: f"caption <{number}>" for number in range(24)}, size=10)
    prep = Prep(pack=Pack(resolution=24, samples_per_shard=9), download=Download(rows_per_file=10))
    for unit in units(layout, prep):
        verify(unit)
    sharpness = {number: float((7 * number) % 24) for number in range(24)}
    for file in layout.samples.glob("*.parquet"):
        rows = pq.read_table(file)["row"].to_pylist()
        given = {
            "row": rows,
            "sharpness": [sharpness[row] for row in rows],
            "flatness": [row / 24 for row in rows],
            "detected_language": ["en" if row % 3 else "<de>" for row in rows],
        }
        layout.scores.mkdir(exist_ok=True)
        pq.write_table(pa.table(given), layout.scores / file.name)
    scorers = [Scorer(kind="sharpness", at_least=5.0, below=20.0), Scorer(kind="flatness", below=0.99)]
    choice = Choice(
        samples_per_shard=9,
        takedown=Tombstones(entries=frozenset({"000000002"})),
        scoring=Scoring(scorers=scorers),
    )
    number = len(plan(layout, choice).shards)
    shards = tuple(write_shard(Task(output=layout.output, number=each, format="jpg")) for each in range(number))
    made = manifest.Manifest(kind="images", shards=shards, contract=contract(prep), lineage={"a": 1})
    return Judged(layout=layout, choice=choice, made=made, sharpness=sharpness)


@pytest.fixture
def settings(toy: Path) -> Settings:
    """Of a latent set that the toy's networks make."""
    return Settings(
        vae=str(toy / "vae"),
        tokenizer=str(toy / "tokenizer"),
        resolution=8,
        text_length=12,
        batch=4,
        workers=1,
        least_psnr=0.0,
    )
