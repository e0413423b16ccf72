"""Samples per second of CPU time, one thread: the scorers without a network, and what CLIP is shown of a stored JPEG.

`make bench` runs it; the figures go to tests/bench/results/ with the date. Medians of five rounds in one process.
"""

import io
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from bigdiff.models.clip import _until_bytes
from bigdiff.prep.picture import STORED_PIXELS, decode
from bigdiff.prep.scorers.captions import Language
from bigdiff.prep.scorers.pictures import Flatness, Sharpness
from bigdiff.prep.scorers.scorer import Batch

RESULTS = Path(__file__).parent / "results"
ROUNDS, SIDE, PICTURES = 5, 512, 32
CAPTIONS = (
    "Vintage leather chair in the living room",
    "Das alte Schloss am Fluss im Herbst",
    "Coucher de soleil sur la mer, photographie en noir et blanc",
    "Red shoes",
)


def picture(seed: int) -> Image.Image:
    """Soft colours with some grain."""
    random = np.random.default_rng(seed)
    soft = cv2.resize(random.integers(0, 256, (16, 16, 3), np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    grain = random.normal(0, 4, soft.shape)
    return Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))


def shown(side: int) -> float:
    """Pictures per second that are decoded and made 224 px by OpenAI's preprocessing, as beside a GPU."""
    contents, transform = [], _until_bytes(image_transform_v2(PreprocessCfg(), is_train=False))
    for seed in range(PICTURES):
        stream = io.BytesIO()
        picture(seed).resize((side, side)).save(stream, "JPEG", quality=95, subsampling=0)
        contents.append(stream.getvalue())
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for content in contents:
            np.asarray(transform(decode(content, STORED_PIXELS)))
        found.append(PICTURES / (time.process_time() - began))
    return statistics.median(found)


def rate(score: Callable[[Batch], object], batch: Batch, repeats: int) -> float:
    score(batch)
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(repeats):
            score(batch)
        found.append(repeats * len(batch) / (time.process_time() - began))
    return statistics.median(found)


@pytest.mark.bench
def test_samples_per_second() -> None:
    cv2.setNumThreads(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch = Batch([picture(seed) for seed in range(PICTURES)], [CAPTIONS[row % 4] for row in range(PICTURES)])
    began = time.process_time()
    language = Language()
    seconds = time.process_time() - began
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"samples per second of CPU time, medians of {ROUNDS} rounds, {today}",
        f"Python {platform.python_version()}, {platform.machine()}, one thread; py3langid {version('py3langid')}, "
        f"numpy {np.__version__}, opencv {cv2.__version__}",
        f"\npictures of {SIDE} px",
        f"sharpness        {rate(Sharpness().score, batch, 4):12,.0f}",
        f"flatness         {rate(Flatness().score, batch, 4):12,.0f}",
        "\nJPEGs of quality 95, 4:4:4, decoded and made what CLIP sees",
        *(f"{side} px           {shown(side):12,.0f}" for side in (256, 512)),
        f"\ncaptions of {sum(map(len, CAPTIONS)) / 4:.0f} characters on average; the model loads in {seconds:.2f} s",
        f"language         {rate(language.score, batch, 200):12,.0f}",
    ]
    torch.set_num_threads(threads)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-scorers.txt").write_text("\n".join(lines) + "\n")
