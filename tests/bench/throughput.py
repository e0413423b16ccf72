"""Pictures/s of encode_latents and of the CLIP scorer, beside the network alone, decoding alone and the limit.

    python tests/bench/throughput.py --pixels 256 512 [--write]     on a GPU
    python tests/bench/throughput.py --quick                        small networks, on any machine

Latents: whole shards by the path of encode_latents (reading, decoding, encoding, the tar and its index), Stable
Diffusion's autoencoder with random weights, JPEGs as build_shards stores them. Scores: whole units by the path of
build_shards, OpenAI's ViT-L/14 and LAION's second aesthetic head with random weights, pictures of the largest size. The
first shard or unit warms up and does not count. The network alone computes batches that lie on the device; decoding
alone is the path's own, into the same memory, by all of its threads and by one. --quick checks all but the rates.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from feeding import limits, made, table
from step import ceiling

from bigdiff.config.errors import UsageError
from bigdiff.config.scoring import Scorer, Scoring
from bigdiff.models.clip import Clip
from bigdiff.models.exact import exact
from bigdiff.prep import encoder as encoders
from bigdiff.prep import latent_shard, score
from bigdiff.prep.encode_workers import one_thread
from bigdiff.prep.latent_settings import Settings
from bigdiff.prep.picture import STORED_PIXELS, decode
from bigdiff.runtime.transfer import settled
from bigdiff.runtime.versions import versions

FUSED = " fused"  # norms of the autoencoder, the activation of CLIP
PRECISIONS = ["fp32", "fp16", f"fp16{FUSED}"]


@dataclass(kw_only=True)
class Row:
    """Of one work in one precision; rates in pictures/s."""

    work: str
    precision: str
    flops: int = 0  # of a picture
    bytes: int = 0  # of a picture, beside the products, in half precision
    path: list[float] = field(default_factory=list)  # of each round
    alone: float = 0.0
    tried: float | None = None  # alone, with cuDNN's benchmark
    decode: float = 0.0
    decode_one: float = 0.0  # by one thread
    threads: int = 0
    waits: int | None = None  # of the host for the device, while it starts a batch; 0 where two are in flight
    ended: str = ""


def latents(options: argparse.Namespace, pixels: int, precision: str, row: Row) -> None:
    """Fill in `row`."""
    networks, images = options.folder / "networks", options.folder / f"images-{pixels}px"
    if not networks.exists():
        made.write_vae(networks, options.quick)
    if not images.exists():
        made.write_images(images, pixels, options.rounds + 1, options.pictures)
    vae, tokenizer = str(networks / "vae"), str(networks / "tokenizer")
    encoder = encoders.load(
        Settings(
            vae=vae,
            tokenizer=tokenizer,
            resolution=pixels,
            precision=precision.removesuffix(FUSED),  # type: ignore[arg-type]
            fused_norms=precision.endswith(FUSED),
            workers=options.threads,
            batch=options.batch,
            least_psnr=-99.0,
        )
    )
    encoder = replace(encoder, threads=options.threads or encoders.processes(Settings(vae=vae, tokenizer=tokenizer)))
    found = limits.of(encoder.vae, lambda network, pixels: network.encode(pixels), pixels)
    row.flops, row.bytes, row.threads = found["flops"], found["bytes"], encoder.threads
    with one_thread(encoder.device):
        row.path = rounds(
            options, lambda name: latent_shard.write_shard(images, options.folder / "latents", name, encoder, told)
        )
        shown = torch.randint(0, 256, (encoder.at_once, pixels, pixels, 3), dtype=torch.uint8, device=encoder.device)
        row.alone, row.tried = alone(options, encoder.device, len(shown), lambda: encoded(encoder, shown))
        host = torch.zeros(shown.shape, dtype=torch.uint8, pin_memory=encoder.device.type == "cuda")
        row.waits = waits(encoder.device, lambda: encoders.start(encoder, host))
        sources = latent_shard.places(latent_shard.read_table(images / "00000.parquet"))
        row.decode, row.decode_one = (
            options.pictures / seconds(lambda one=one: decoded(images, sources, one))  # type: ignore[misc]
            for one in (encoder, replace(encoder, threads=1))
        )


def told(_: int) -> None:
    """Nobody looks at the progress."""


@torch.inference_mode()
def encoded(encoder: encoders.Encoder, shown: torch.Tensor) -> torch.Tensor:
    network = encoder.half or encoder.vae
    found: torch.Tensor = network.encode(encoders.normalised(shown).to(network.dtype)).latent_dist.parameters
    return found


def decoded(images: Path, sources: latent_shard.Sources, encoder: encoders.Encoder) -> None:
    for _ in latent_shard.batches(images / "00000.tar", sources, encoder):
        pass


def scores(options: argparse.Namespace, pixels: int, precision: str, row: Row) -> None:
    """Fill in `row`."""
    folder, output = options.folder / "clip", options.folder / f"scores-{precision}"
    source = f"local-dir:{folder}", str(folder / "head.pth")
    if not folder.exists():
        source = made.write_clip(folder, options.quick)
    made.write_units(output, pixels, options.rounds + 1, options.pictures)
    scoring = Scoring(
        scorers=[Scorer(kind="aesthetic_v2", weights=source[1])],
        clip=source[0],
        batch=options.batch,
        precision=precision.removesuffix(FUSED),  # type: ignore[arg-type]
        activation="fused" if precision.endswith(FUSED) else "plain",
    )
    written = json.dumps(asdict(scoring))
    clip = score._loaded(written).clip
    assert isinstance(clip, Clip)
    side = clip.network.visual.image_size[0]
    found = limits.of(clip.network.visual, lambda network, pixels: network(pixels), side)
    row.flops, row.bytes, row.threads = found["flops"], found["bytes"], score.threads()
    row.path = rounds(options, lambda name: score.score_unit(score.Task(output=output, unit=name, scoring=written)))
    values = torch.rand(options.batch, 3, side, side, device=clip._device).to(clip._kind)
    row.alone, row.tried = alone(options, clip._device, len(values), lambda: embedded(clip, values))
    contents = made.photos(pixels, options.pictures)
    seen = [clip.seen(decode(content, STORED_PIXELS)) for content in contents[:8]]
    row.waits = waits(clip._device, lambda: clip.start(seen))
    row.decode, row.decode_one = (
        options.pictures / seconds(lambda count=count: prepared(clip, contents, count))  # type: ignore[misc]
        for count in (row.threads, 1)
    )


def embedded(clip: Clip, values: torch.Tensor) -> torch.Tensor:
    with exact():
        found: torch.Tensor = clip.network.encode_image(values, normalize=True)
        return found


def prepared(clip: Clip, contents: list[bytes], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda content: clip.seen(decode(content, STORED_PIXELS)), contents):
            pass


def rounds(options: argparse.Namespace, work: Callable[[str], object]) -> list[float]:
    """Pictures/s of each shard or unit but the first."""
    taken = [seconds(lambda number=number: work(f"{number:05d}")) for number in range(options.rounds + 1)]  # type: ignore[misc]
    return [options.pictures / one for one in taken[1:]]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alone(
    options: argparse.Namespace, device: torch.device, count: int, work: Callable[[], object]
) -> tuple[float, float | None]:
    """Pictures/s of a network whose batches of `count` lie on the device; and again where cuDNN may try its kernels."""

    def repeated(times: int) -> None:
        for _ in range(times):
            work()
        settled(device)

    def rate() -> float:
        repeated(3)  # kernels are chosen and loaded
        return statistics.median(count * options.passes / seconds(lambda: repeated(options.passes)) for _ in range(3))

    plain = rate()
    if device.type != "cuda":
        return plain, None
    with trying():
        return plain, rate()


def waits(device: torch.device, work: Callable[[], object]) -> int | None:
    """How often `work` makes the host wait for the device; None where nobody can tell."""
    if device.type != "cuda":
        return None
    work()
    settled(device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        work()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in told)


@contextmanager
def trying() -> Iterator[None]:
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


def measured(options: argparse.Namespace) -> list[Row]:
    """A row for each work and precision; one that cannot be done says why."""
    works: list[tuple[str, Callable[..., None], int]] = [
        *((f"latents {pixels} px", latents, pixels) for pixels in options.pixels),
        ("scores", scores, max(options.pixels)),
    ]
    rows = []
    for work, fill, pixels in works:
        for precision in options.precisions:
            row = Row(work=work, precision=precision)
            print(f"{work}, {precision}", flush=True)
            try:
                fill(options, pixels, precision, row)
            except (UsageError, torch.OutOfMemoryError) as error:
                row.ended = " ".join(str(error).split())[:300]
            rows.append(row)
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", choices=(256, 512), default=[256, 512])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--pictures", type=int, default=4096, help="of a shard or unit")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, help="that decode beside encode_latents (default: its own choice)")
    parser.add_argument("--rounds", type=int, default=3, help="shards or units, of which the median counts")
    parser.add_argument("--passes", type=int, default=20, help="of the network alone, between two looks at the clock")
    parser.add_argument("--quick", action="store_true", help="small networks and few pictures")
    parser.add_argument("--write", action="store_true", help="a dated .txt and .json in --results")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.quick:
        options.pixels, options.pictures, options.batch, options.rounds, options.passes = [32], 20, 8, 1, 1
        options.threads, options.precisions = 2, ["fp32", "fp16"]
    return options


def main() -> int:
    options = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        rows = measured(options)
    today, where = datetime.now(UTC).date().isoformat(), device.type
    if where == "cuda":
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    cores, most = len(os.sched_getaffinity(0)), ceiling(device)
    result = {
        "title": f"{today}, {where}, {platform.machine()}, {cores} cores, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in versions().items()),
        "notes": [
            f"medians of {options.rounds} shards or units of {options.pictures:,} pictures, batches of "
            f"{options.batch}, one GPU; largest product of matrices {most / 1e12:.3g} TFLOP/s",
            *(["--quick: small networks on any device: no rate here says anything"] if options.quick else []),
        ],
        "ceiling": most,
        "cores": cores,
        "rows": [asdict(row) for row in rows],
    }
    text = "\n".join(table.lines(result)) + "\n"
    print(text)
    if options.write:
        options.results.mkdir(exist_ok=True)
        (options.results / f"{today}-throughput.txt").write_text(text)
        (options.results / f"{today}-throughput.json").write_text(json.dumps(result, indent=1) + "\n")
    lacking = table.lacks(result)
    print("\n".join(lacking) if lacking else "complete: each work was measured whole and in its parts")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
