"""What encode_latents adds to a bare loop over the same VAE and batches: pictures decoded beforehand, or as they come.

Two ways of ours, turn by turn beside both bare loops: one thread that does all, as each process does on CPU; and with
threads that decode and write, as beside a GPU, where the VAE's thread stands for the GPU. The VAE is a real
AutoencoderKL, narrow enough to take some ten times as long as a picture's decode: about what Stable Diffusion's takes
on a GPU (1.1 TFLOP at 512 px, 15 ms at 75 TFLOP/s, beside eight decoding threads of 5 to 7 ms, would be twenty). On CPU
that VAE takes thousands of times as long, so all of this counts for less. Its 16 channels at 256 px make members of the
bytes that 4 channels at 512 px have.

All four reconstruct the canary's pictures, once a shard: its share of a shard of 10,000 is reckoned from its own time.
"""

import io
import os
import platform
import statistics
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from bigdiff.data import index
from bigdiff.data.pixels import square
from bigdiff.models import components
from bigdiff.prep.encoder import CANARY, Encoder, canary, normalised
from bigdiff.prep.latent_shard import write_shard

RESULTS = Path(__file__).parent / "results"
TURNS, PICTURES, BATCH, SIDE, SHARD = 7, 128, 16, 256, 10_000


def photo(seed: int) -> bytes:
    """A JPEG of 768 x 576 px with the spectrum of a photo."""
    random, total = np.random.default_rng(seed), np.zeros((576, 768, 3), np.float32)
    for scale in (8, 32, 128, 512):
        small = random.normal(size=(576 * scale // 1024, 768 * scale // 1024, 3)).astype(np.float32)
        total += cv2.resize(small, (768, 576), interpolation=cv2.INTER_CUBIC) / scale
    total = (total - total.mean()) / total.std() * 50 + 128
    stream = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=88, subsampling=2)
    return stream.getvalue()


def shard(folder: Path) -> list[bytes]:
    """An image shard, and the files in it."""
    folder.mkdir()
    contents, keys = [photo(seed) for seed in range(PICTURES)], [f"{row:09d}" for row in range(PICTURES)]
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for key, content in zip(keys, contents, strict=True):
            member = tarfile.TarInfo(f"{key}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    table = {"key": keys, "caption": [f"a picture of {key}" for key in keys]}
    pq.write_table(
        pa.table({**table, **index.columns(keys, index.members(folder / "00000.tar"))}), folder / "00000.parquet"
    )
    return contents


@pytest.fixture
def encoder(toy: Path) -> Encoder:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
    )
    return Encoder(
        vae=vae.requires_grad_(False).eval().to(memory_format=torch.channels_last),
        tokenizer=components.load_tokenizer(str(toy / "tokenizer"), 12),
        resolution=SIDE,
        batch=BATCH,
        device=torch.device("cpu"),
        threads=1,
        least_psnr=-99.0,
    )


@torch.inference_mode()
def bare(encoder: Encoder, batch: Callable[[int], torch.Tensor]) -> None:
    """Each batch through the VAE, and the canary's pictures back."""
    for start in range(0, PICTURES, BATCH):
        shown = batch(start)
        moments = encoder.vae.encode(normalised(shown)).latent_dist.parameters.half().numpy()
        if start == 0:
            canary(encoder, shown[:CANARY], moments[:CANARY], Path("bare"))


def seconds(turn: Callable[[], object]) -> tuple[float, float, float]:
    """On the clock, of all threads' CPU time, and of this thread's."""
    before = time.perf_counter(), time.process_time(), time.thread_time()
    turn()
    after = time.perf_counter(), time.process_time(), time.thread_time()
    clock, process, thread = (end - begin for begin, end in zip(before, after, strict=True))
    return clock, process, thread


@pytest.mark.bench
def test_overhead_of_encoding(encoder: Encoder, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    contents = shard(tmp_path / "images")

    def decoded(start: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([square(one, SIDE)[0] for one in contents[start : start + BATCH]]))

    beforehand = {start: decoded(start) for start in range(0, PICTURES, BATCH)}
    stored = np.zeros((CANARY, 32, SIDE // 8, SIDE // 8), np.float16)

    def ours(threads: int) -> None:
        one = replace(encoder, threads=threads)
        write_shard(tmp_path / "images", tmp_path / "out", "00000", one, lambda count: None)

    ways = {
        "bare": lambda: bare(encoder, lambda start: beforehand[start]),
        "decoding": lambda: bare(encoder, decoded),
        "one thread": lambda: ours(1),
        "ahead": lambda: ours(2),
        "canary": lambda: canary(encoder, beforehand[0][:CANARY], stored, Path("alone")),
        "decode": lambda: [decoded(start) for start in beforehand],
    }
    for way in ways.values():
        way()
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, way in ways.items():
            taken[name].append(seconds(way))
    torch.set_num_threads(threads)
    report({name: np.array(values) for name, values in taken.items()})


def report(taken: dict[str, np.ndarray]) -> None:
    clock, process, thread = 0, 1, 2

    def compared(ours: str, theirs: str, kind: int) -> str:
        ratios = (taken[ours] / taken[theirs])[:, kind].tolist()
        low, _, high = statistics.quantiles(ratios, n=4)
        return f"{statistics.median(ratios) - 1:+.2%} ({low - 1:+.2%} to {high - 1:+.2%})"

    middle = {name: np.median(values, axis=0) for name, values in taken.items()}
    per_picture = (middle["bare"] - middle["canary"])[process] / PICTURES
    share = middle["canary"][process] / (SHARD * per_picture)
    added = np.median((taken["one thread"] - taken["decoding"])[:, process]) / PICTURES
    beside = np.median((taken["ahead"] - taken["bare"])[:, thread]) / PICTURES
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"{today}, Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {PICTURES} JPEGs of 768 x 576 px, {SIDE} px, batches "
        f"of {BATCH}, {TURNS} turns of each, side by side; medians of the ratios of neighbours, quartiles in brackets",
        f"VAE (f8, widths 8-16-32-32, 16 latent channels, fp32, one thread): {1e3 * per_picture:.1f} ms a picture; "
        f"decode and resize: {1e3 * middle['decode'][process] / PICTURES:.2f} ms",
        "",
        "one thread that does all, as a process on CPU; CPU time",
        f"over the bare loop that decodes, too: {compared('one thread', 'decoding', process)}, {1e6 * added:.0f} us a "
        f"picture; goal: under 3 %",
        f"over the bare loop of pictures decoded beforehand: {compared('one thread', 'bare', process)}",
        "",
        "threads that decode ahead and write behind, as beside a GPU",
        f"over the bare loop of pictures decoded beforehand, CPU time of the VAE's thread: "
        f"{compared('ahead', 'bare', thread)}, {1e6 * beside:.0f} us a picture; goal: under 3 %",
        f"the same on the clock, which others on the two cores hold up: {compared('ahead', 'bare', clock)}",
        "",
        f"in all of these, the canary of {CANARY} pictures a shard: {share:.2%} of a shard of {SHARD:,}",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{today}-encode.txt").write_text("\n".join(lines) + "\n")
