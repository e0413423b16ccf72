"""Pictures per second of CPU time: decoders of JPEG, and ways of making a 1,500 px photo 512 px.

`make bench` runs it; the figures go to tests/bench/results/ with the date. Medians of five rounds in one process, side
by side, so ratios mean more than rates.
"""

import io
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from bigdiff.data.decoding import decode
from bigdiff.data.pixels import cover, square

RESULTS = Path(__file__).parent / "results"
ROUNDS, SIDE = 5, 512
Way = Callable[[bytes], np.ndarray]


def photo(width: int, height: int, quality: int, subsampling: int, seed: int) -> bytes:
    """A JPEG with the spectrum of a photo: amplitude falls with frequency."""
    random, total = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32)
    for scale in (8, 16, 32, 64, 128, 256, 512, 1024):
        small = random.normal(size=(max(2, height * scale // 1024), max(2, width * scale // 1024), 3))
        total += cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC) / scale
    total = (total - total.mean()) / total.std() * 50 + 128
    stream = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return stream.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def by_pillow_draft(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (SIDE, SIDE))
    return np.asarray(image.convert("RGB"))


def by_opencv(content: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert found is not None
    return found


def by_torchvision(content: bytes) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's decoders are deprecated since 0.29
        return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB).numpy()


def by_simplejpeg(content: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(content, "RGB")


def by_simplejpeg_scaled(content: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(content, "RGB", min_height=SIDE, min_width=SIDE)


def resized_by_pillow(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    size = SIDE * width // min(width, height), SIDE * height // min(width, height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


DECODERS: dict[str, Way] = {
    "bigdiff": decode,
    "simplejpeg": by_simplejpeg,
    "torchvision": by_torchvision,
    "opencv": by_opencv,
    "Pillow": by_pillow,
}
TO_512: dict[str, Way] = {
    "bigdiff: whole decode, torch's resize": lambda content: square(content, SIDE)[0],
    "scaled decode, torch's resize": lambda content: cover(by_simplejpeg_scaled(content), SIDE, SIDE),
    "whole decode, Pillow's resize": lambda content: resized_by_pillow(by_simplejpeg(content)),
    "Pillow, whole decode": lambda content: resized_by_pillow(by_pillow(content)),
    "Pillow, draft": lambda content: resized_by_pillow(by_pillow_draft(content)),
}


def rates(ways: dict[str, Way], contents: list[bytes]) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.process_time()
            for content in contents:
                way(content)
            found[name].append(len(contents) / (time.process_time() - began))
    return {name: statistics.median(values) for name, values in found.items()}


def difference(one: np.ndarray, other: np.ndarray) -> str:
    apart = np.abs(one.astype(int) - other)
    return f"{apart.max()} levels at most, {(apart > 0).mean():.1%} of the values"


@pytest.mark.bench
def test_pictures_per_second() -> None:
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    small = [photo(512, 512, 95, 0, seed) for seed in range(24)]
    large = [photo(1500, 1100, 88, 2, seed) for seed in range(8)]
    for ways, contents in ((DECODERS, small), (TO_512, large)):
        for way in ways.values():
            way(contents[0])
    today = datetime.now(UTC).date().isoformat()
    packages = ", ".join(f"{name} {version(name)}" for name in ("simplejpeg", "torch", "torchvision", "pillow"))
    lines = [
        f"pictures per second of CPU time, medians of {ROUNDS} rounds, {today}",
        f"Python {platform.python_version()}, {platform.machine()}, one thread; {packages}, opencv {cv2.__version__}",
    ]
    titles = {
        f"\n512 px, quality 95, 4:4:4, {np.mean([len(one) for one in small]) / 1000:.0f} kB: decoded": (
            DECODERS,
            small,
        ),
        f"\n1500 x 1100 px, quality 88, 4:2:0, {np.mean([len(one) for one in large]) / 1000:.0f} kB: decoded": (
            DECODERS,
            large,
        ),
        "\nthe same: decoded and made 512 px": (TO_512, large),
    }
    for title, (ways, contents) in titles.items():
        lines.append(title)
        lines += [f"{name:38} {rate:7,.0f}" for name, rate in rates(ways, contents).items()]
    whole = by_simplejpeg(large[0])
    lines.append("\npixels, on the first of these")
    lines.append(f"simplejpeg and Pillow, decoded: {difference(whole, by_pillow(large[0]))}")
    lines.append(f"torch's resize and Pillow's: {difference(cover(whole, SIDE, SIDE), resized_by_pillow(whole))}")
    scaled = cover(by_simplejpeg_scaled(large[0]), SIDE, SIDE)
    lines.append(f"scaled and whole decode: {difference(scaled, cover(whole, SIDE, SIDE))}")
    torch.set_num_threads(threads)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-decoding.txt").write_text("\n".join(lines) + "\n")
