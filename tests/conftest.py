"""Fixtures that many tests share: real processes that form a real gloo group."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forking import engine_forker as engine_forker
from forking import run_ranks as run_ranks
from PIL import Image
from ports import free_ports

from bigdiff.data import index, manifest
from bigdiff.data.contract import LatentContract
from bigdiff.data.member import pack
from bigdiff.runtime.files import sha256

if TYPE_CHECKING:
    from bigdiff.models.denoiser import Denoiser
# before torch is imported anywhere: two processes with one thread each are the steadiest on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions")  # where `make setup` built the op
os.environ["PATH"] = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# a shell that starts the tests in the background has them, and all they start, ignore Ctrl-C, which tests send
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(name="free_port")
def free_port_fixture() -> Callable[[], int]:
    """A port that nobody listens on."""
    return lambda: free_ports(1)[0]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small disk in memory, where that is allowed."""
    mounts: list[Path] = []

    def mount(*options: str) -> Path:
        folder = tmp_path / f"disk-{len(mounts)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a disk of its own needs the right to mount: {done.stderr.strip()}")
        mounts.append(folder)
        return folder

    try:
        yield mount
    finally:
        for folder in mounts:
            subprocess.run(["umount", "-l", str(folder)], check=True)


# Without the interpreter's teardown: under load gloo's threads abort in it now and then ("terminate called without an
# active exception"), long after the script has done its work. An exception in the script still ends with 1.
LEAVE_AT_ONCE = "\nimport os, sys; sys.stdout.flush(); sys.stderr.flush(); os._exit(0)\n"


def start_ranks(script: str, size: int, *arguments: str) -> list[subprocess.Popen[str]]:
    port = str(free_ports(1)[0])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script + LEAVE_AT_ONCE, *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(size)
    ]


@pytest.fixture(name="start_ranks")
def start_ranks_fixture() -> Callable[..., list[subprocess.Popen[str]]]:
    """Start a Python script as `size` ranks of one gloo group; the test ends them."""
    return start_ranks


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with real tiny components, a latent set of 96 samples in 4 shards, and a `stage.yaml` for them."""
    # imported here, so that tests of torch-free modules start quickly
    from bigdiff.models import components

    root = tmp_path_factory.mktemp("toy")
    write_components(root)
    vae = components.load_vae(str(root / "vae"))
    tokenizer = components.load_tokenizer(str(root / "tokenizer"), 12)
    contract = LatentContract(
        vae_sha256=components.weights_sha256(vae),
        vae_scaling_factor=float(vae.config["scaling_factor"]),
        vae_factor=2,
        latent_channels=2,
        resolution=8,
        tokenizer_sha256=components.tokenizer_sha256(tokenizer),
        empty_tokens=tuple(components.token_ids(tokenizer, [""])[0].tolist()),
    )
    captions = [f"picture {number} of a {colour} thing" for number, colour in enumerate(["red", "blue", "green"] * 32)]
    write_latents(root / "latents", contract, components.token_ids(tokenizer, captions).numpy())
    (root / "stage.yaml").write_text(STAGE.format(root=root))
    return root


STAGE = """
name: toy
runs: {root}/runs
resolution: 8
steps: 20
text_dropout: 0.3
data: {{latents: {root}/latents, window: 2}}
batch: {{total: 8, micro: 2}}
model:
  unet:
    latent_channels: 2
    block_out_channels: [8, 16]
    layers_per_block: 1
    down_block_types: [CrossAttnDownBlock2D, DownBlock2D]
    up_block_types: [UpBlock2D, CrossAttnUpBlock2D]
    cross_attention_dim: 16
    attention_head_dim: 2
    norm_num_groups: 4
  vae: {{source: {root}/vae, factor: 2}}
  text: {{encoder: {root}/text_encoder, tokenizer: {root}/tokenizer, max_length: 12}}
optim: {{lr: 2e-3, warmup_steps: 3}}
ema: {{decays: [0.9]}}
checkpoint: {{every: 4, keep: 9}}
log: {{every: 1}}
"""


def write_components(root: Path) -> None:
    """A random AutoencoderKL, a random CLIPTextModel and the CLIP tokenizer, a few kilobytes each but for the words."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from bigdiff.quickstart.components import write_tokenizer

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=2,
        scaling_factor=0.5,
        sample_size=8,
    ).save_pretrained(root / "vae")
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    CLIPTextModel(text).save_pretrained(root / "text_encoder")
    write_tokenizer(root / "tokenizer", 12)


def write_latents(folder: Path, contract: LatentContract, tokens: npt.NDArray[np.int64]) -> None:
    """Seeded random moments, 24 samples a shard, written with tarfile and pyarrow alone."""
    folder.mkdir()
    shards = []
    for number in range(len(tokens) // 24):
        name, keys = f"{number:05d}", [f"{number:05d}{row:04d}" for row in range(24)]
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for row, key in enumerate(keys):
                moments = np.random.default_rng((number, row)).normal(size=contract.shape)
                moments[len(moments) // 2 :] -= 4  # log-variances
                content = pack(moments.astype(np.float16), tokens[24 * number + row].astype(np.uint16))
                member = tarfile.TarInfo(f"{key}.safetensors")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        found = index.members(folder / f"{name}.tar")
        pq.write_table(pa.table({"key": keys, **index.columns(keys, found)}), folder / f"{name}.parquet")
        tar = folder / f"{name}.tar"
        shards.append(manifest.Shard(name=name, samples=24, bytes=tar.stat().st_size, sha256=sha256(tar)))
    manifest.write(folder, manifest.Manifest(kind="latents", shards=tuple(shards), contract=contract.lines()))


@pytest.fixture(scope="session")
def trained(toy: Path) -> Callable[..., "Denoiser"]:
    """Make a run folder as a finished stage leaves it: seeded "raw" weights, the EMA being half of them.

    Called with the folder's parent and `key=value` arguments; gives the network whose weights are the EMA's.
    """
    import torch

    from bigdiff.checkpoint import layout
    from bigdiff.config.load import dump, load_stage
    from bigdiff.models import components
    from bigdiff.models.denoiser import Denoiser

    def make(runs: Path, *overrides: str, step: int = 7) -> Denoiser:
        stage = load_stage(str(toy / "stage.yaml"), [f"runs={runs}", *overrides])
        folder = layout.run_folder(stage.runs, stage.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / layout.CONFIG).write_text(dump(stage))
        torch.manual_seed(step)
        unet = components.build_unet(stage.model.unet, stage.latent_size)
        denoiser = Denoiser(unet, components.load_text_encoder(stage.model.text.encoder), stage.model.text.train)
        save_checkpoint(folder, denoiser, step)
        with torch.no_grad():
            for parameter in denoiser.trained().values():
                parameter.mul_(0.5)
        return denoiser.eval()

    return make


def save_checkpoint(folder: Path, denoiser: "Denoiser", step: int) -> None:
    import torch
    import torch.distributed as dist

    from bigdiff.checkpoint.content import AVERAGES, Content
    from bigdiff.checkpoint.state import Identity, TrainState
    from bigdiff.checkpoint.writer import CheckpointWriter
    from bigdiff.config.schema import Checkpoint
    from bigdiff.engine.partition import Partition, Piece, dense
    from bigdiff.runtime.world import World

    parts = {name: parameter.detach() for name, parameter in denoiser.trained().items()}
    flat = torch.cat([one.flatten() for one in parts.values()])
    content = Content(
        partition=Partition(
            layout=dense((name, one.shape) for name, one in parts.items()),
            pieces=(Piece(local=0, start=0, length=len(flat)),),
            masters=(flat,),
        ),
        tensors={"exp_avg": (flat * 0,), "exp_avg_sq": (flat * 0,), "ema/0.9": (flat * 0.5,)},
        state=TrainState(step=step, samples_seen=8 * step),
        identity=Identity(seed=0, manifest="ab" * 32, total=8, order="o"),
        about={"stage": "toy", AVERAGES: '{"ema/0.9": 0}'},
    )
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
        writer = CheckpointWriter(folder, world, content.partition, list(content.tensors), Checkpoint(keep=9))
        writer.save(content)
        writer.wait(world)
        writer.close()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def pipeline(trained: Callable[..., "Denoiser"], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported pipeline of 8 px pictures."""
    from bigdiff.export.diffusers import export

    folder = tmp_path_factory.mktemp("exported")
    trained(folder / "runs")
    export(folder / "runs" / "toy", folder / "pipeline")
    return folder / "pipeline"


def soft_picture(shard: int, row: int) -> bytes:
    """A JPEG of soft colours, of a size of its own."""
    random = np.random.default_rng((shard, row))
    small = Image.fromarray(random.integers(0, 256, (3, 4, 3), np.uint8))
    stream = io.BytesIO()
    small.resize((20 + row, 24 + shard), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write_image_shard(folder: Path, number: int, samples: int, extension: str) -> manifest.Shard:
    name = f"{number:05d}"
    keys = [f"{number:05d}{row:04d}" for row in range(samples)]
    contents = [soft_picture(number, row) for row in range(samples)]
    with tarfile.open(folder / f"{name}.tar", "w") as archive:
        for key, content in zip(keys, contents, strict=True):
            for end, data in ((extension, content), ("txt", key.encode())):
                member = tarfile.TarInfo(f"{key}.{end}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    columns = {
        "key": keys,
        "caption": [f"picture {row} of shard {number}" for row in range(samples)],
        "url": [f"http://example.org/{key}" for key in keys],
        "caption_length": [20] * samples,
        "aesthetic": [float(row) for row in range(samples)],
        "sha256": [hashlib.sha256(content).hexdigest() for content in contents],
        **index.columns(keys, index.members(folder / f"{name}.tar")),
    }
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    tar = folder / f"{name}.tar"
    return manifest.Shard(name=name, samples=samples, bytes=tar.stat().st_size, sha256=sha256(tar))


@pytest.fixture
def image_set(tmp_path: Path) -> Callable[..., Path]:
    """Make an image set, as the packer leaves it, of the given shard sizes in a folder of `tmp_path`."""

    def make(*sizes: int, name: str = "images", extension: str = "jpg") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shards = tuple(write_image_shard(folder, number, size, extension) for number, size in enumerate(sizes))
        manifest.write(folder, manifest.Manifest(kind="images", shards=shards))
        return folder

    return make
