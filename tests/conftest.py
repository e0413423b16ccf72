"""Fixtures that many tests share: real processes that form a real gloo group."""

import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigdiff.data import index, manifest
from bigdiff.data.contract import LatentContract
from bigdiff.data.member import pack
from bigdiff.runtime.files import sha256

# before torch is imported anywhere: two processes with one thread each are the steadiest on two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
ROOT = Path(__file__).resolve().parents[1]

Ranks = Callable[..., list[str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(script: str, size: int, *arguments: str) -> list[subprocess.Popen[str]]:
    port = str(free_port())
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
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


@pytest.fixture
def run_ranks() -> Ranks:
    """Run a Python script as `size` ranks of one gloo group; gives each rank's standard output."""

    def run(script: str, size: int, *arguments: str, timeout: float = 300) -> list[str]:
        processes = start_ranks(script, size, *arguments)
        try:
            results = [process.communicate(timeout=timeout) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        for process, (_, errors) in zip(processes, results, strict=True):
            assert process.returncode == 0, errors[-4000:]
        return [output for output, _ in results]

    return run


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
ema: {{decay: 0.9}}
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
