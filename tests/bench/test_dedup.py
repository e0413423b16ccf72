"""What deduplication costs, and what it finds: hashes a second, clusters of a million, edits found, strangers taken.

`make bench` runs it; the figures go to tests/bench/results/ with the date. Times are of the process's own CPU.
"""

import io
import platform
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance

from bigdiff.prep import content, near
from bigdiff.prep.decontaminate import normal
from bigdiff.prep.phash import distances, is_flat, phash
from bigdiff.quickstart.scenes import render, scene

RESULTS = Path(__file__).parent / "results"
MILLION, EDITED, STRANGERS, SIDE = 1_000_000, 300, 3_000, 256
DISTANCES, DENSE = (2, 4, 6), 200  # 33 million pairs take minutes
BOUNDS = (0, 2, 4, 6, 8)
CROWD = 20_000
WAYS = {"evenly spread": 0, "20,000 of them agree in 13 bits": 13, "20,000 of them agree in 48 bits": 48}


def photo(seed: int, side: int = SIDE) -> Image.Image:
    """A picture with the spectrum of a photo: amplitude falls with frequency."""
    random, total = np.random.default_rng(seed), np.zeros((side, side, 3), np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128):
        small = random.normal(size=(cells, cells, 3)).astype(np.float32)
        total += cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC) / cells
    total = (total - total.mean()) / total.std() * 50 + 128
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def drawn(seed: int) -> Image.Image:
    return render(scene(0, seed), SIDE)


def as_jpeg(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=50)
    return Image.open(stream).convert("RGB")


def cropped(picture: Image.Image, share: float) -> Image.Image:
    cut = round(picture.width * share)
    return picture.crop((cut, cut, picture.width - cut, picture.height - cut))


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 50": as_jpeg,
    "half the size and back": lambda one: one.resize((SIDE // 2, SIDE // 2)).resize((SIDE, SIDE)),
    "1 % cut off each side": lambda one: cropped(one, 0.01),
    "2 % cut off each side": lambda one: cropped(one, 0.02),
    "10 % brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.1),
    "all but the crop": lambda one: as_jpeg(ImageEnhance.Brightness(one.resize((128, 128))).enhance(1.1)),
    "mirrored": lambda one: one.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def speed() -> list[str]:
    picture, small = photo(0, 512), photo(0, 32)
    found = {}
    for name, one in {"512 px": picture, "32 px, so no resizing": small}.items():
        began = time.process_time()
        for _ in range(400):
            phash(one)
        found[name] = 400 / (time.process_time() - began)
    captions = [f"A Photo, of number {number}: \u201ccaf\u00e9\u201d" for number in range(50_000)]
    began = time.process_time()
    for caption in captions:
        normal(caption)
    rate = len(captions) / (time.process_time() - began)
    return [
        "\na second, on one core",
        *(f"{'hashes of pictures of ' + name:48}{rate:9,.0f}" for name, rate in found.items()),
        f"{'captions made normal':48}{rate:9,.0f}",
    ]


def million(distance: int, agreeing: int) -> str:
    random = np.random.default_rng(0)
    hashes = random.integers(-(2**63), 2**63 - 1, MILLION)
    hashes[::50] = hashes[1::50] ^ (1 << random.integers(0, 63, MILLION // 50))  # planted, one bit apart
    low = (1 << agreeing) - 1
    hashes[-CROWD:] = (hashes[-CROWD:] & ~low) | (0x5A5A5A5A5A5A5A5A & low)
    rows = np.arange(MILLION)
    firsts = [row for row in range(0, MILLION - CROWD, 50) if not any(map(is_flat, hashes[row : row + 2].tolist()))]
    with duckdb.connect(config={"threads": 1}) as base:
        base.register("samples", pa.table({"row": rows, "rank": rows, "phash": hashes}))
        began = time.process_time()
        found = near.search(base, "samples", distance)
        near.clusters(base, "samples")
        near.stars(base, "samples")
        seconds = time.process_time() - began
        gone = {row for (row,) in base.execute("SELECT row FROM near_stars").fetchall()}
    there = sum(row + 1 in gone for row in firsts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return f"{distance:4}{found.pairs:12,}{found.flat:10,}{there:9,} of {len(firsts):,}{seconds:9.1f} s{peak:9,.0f} MB"


def edits(draw: Callable[[int], Image.Image], count: int) -> list[str]:
    pictures = [draw(seed) for seed in range(count)]
    hashes = np.array([phash(picture) for picture in pictures])
    flat = np.array([is_flat(value) for value in hashes.tolist()])
    lines = [f"{'found at a distance of at most':34}" + "".join(f"{bound:8}" for bound in BOUNDS)]
    for name, edit in EDITS.items():
        edited = np.array([phash(edit(picture)) for picture in pictures])
        usable = ~flat & ~np.array([is_flat(value) for value in edited.tolist()])
        apart = distances(hashes, edited)
        shares = [(usable & (apart <= bound)).mean() for bound in BOUNDS]
        lines.append(f"{name:34}" + "".join(f"{share:8.1%}" for share in shares))
    return lines


def strangers(draw: Callable[[int], Image.Image]) -> list[str]:
    hashes = np.array([phash(draw(seed)) for seed in range(STRANGERS)])
    flat = np.array([is_flat(value) for value in hashes.tolist()])
    apart = distances(hashes[:, None], hashes[None])
    np.fill_diagonal(apart, 64)
    apart[flat] = apart[:, flat] = 64
    pairs = [(apart <= bound).sum() / STRANGERS / (STRANGERS - 1) for bound in BOUNDS]
    taken = [(apart <= bound).any(axis=1).mean() for bound in BOUNDS]
    return [
        f"{'different pairs that are near':34}" + "".join(f"{share:8.4%}" for share in pairs),
        f"{'pictures near a different one':34}" + "".join(f"{share:8.1%}" for share in taken),
        f"pictures with a flat hash, left out: {flat.mean():.1%}; least distance of two others: {apart.min()}",
    ]


def contents(folder: Path, count: int) -> str:
    random = np.random.default_rng(0)
    values = random.normal(size=(count, 768))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    np.save(folder / "unit.npy", values.astype(np.float16))
    rows = np.arange(count)
    with duckdb.connect(config={"threads": 1}) as base:
        base.register("given", pa.table({"row": rows, "rank": rows, "unit": ["unit"] * count, "position": rows}))
        began = time.process_time()
        content.stars(base, "given", folder, 0.95, with_faiss=False)
        seconds = time.process_time() - began
    hours = seconds * (MILLION / count) ** 2 / 3600
    return f"{count:,} embeddings of 768: {seconds:.1f} s of CPU; at that rate a million take {hours:.1f} core hours"


@pytest.mark.bench
def test_what_it_costs_and_finds(tmp_path: Path) -> None:
    today = datetime.now(UTC).date().isoformat()
    packages = ", ".join(f"{name} {version(name)}" for name in ("duckdb", "numpy", "pillow"))
    lines = [
        f"deduplication, {today}; Python {platform.python_version()}, {platform.machine()}, one thread; {packages}",
        f"\n{MILLION:,} random hashes, planted pairs one bit apart: search, clusters and stars",
    ]
    for name, agreeing in WAYS.items():
        lines.append(f"{name}\nbits       pairs      flat    planted, found        CPU   peak so far")
        lines += [million(distance, agreeing) for distance in DISTANCES if distance * agreeing < DENSE]
    lines += speed()
    lines.append(f"\n{contents(tmp_path, 8_000)}")
    for title, draw in {"pictures with a photo's spectrum": photo, "the quickstart's drawn scenes": drawn}.items():
        lines.append(f"\n{title}: {EDITED} edited, {STRANGERS:,} different ones, {SIDE} px")
        lines += [*edits(draw, EDITED), *strangers(draw)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-dedup.txt").write_text("\n".join(lines) + "\n")
