"""Networks with random weights and a latent set of noise: all that a stage needs to train, without a download."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from bigdiff.data import index, manifest
from bigdiff.data.contract import LatentContract
from bigdiff.data.member import pack
from bigdiff.models import components
from bigdiff.quickstart.components import write_tokenizer
from bigdiff.runtime.files import sha256

WORDS, TOKENS = 49408, 77
SHARD = 512  # samples
# Without the library's own beginning, which another stage of the same file gives
SMALL = [
    "resolution=64",
    "model.unet.block_out_channels=[16]",
    "model.unet.layers_per_block=1",
    "model.unet.down_block_types=[CrossAttnDownBlock2D]",
    "model.unet.up_block_types=[CrossAttnUpBlock2D]",
    "model.unet.cross_attention_dim=16",
    "model.unet.attention_head_dim=2",
    "model.unet.norm_num_groups=4",
    "engine.bucket_elements=20000",  # several
]


def write_networks(folder: Path, small: bool) -> None:
    """CLIP's text model of SD 1.x, or a small one, and its tokenizer; an autoencoder whose decoder nobody will use."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    marks = {"bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1, "pad_token_id": WORDS - 1}
    CLIPTextModel(CLIPTextConfig(**(size if small else text), **marks)).save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer", TOKENS)
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder / "vae")


def write_latents(folder: Path, networks: Path, pixels: int, shards: int) -> None:
    """A set of noise that the networks' stage takes."""
    vae = components.load_vae(str(networks / "vae"))
    tokenizer = components.load_tokenizer(str(networks / "tokenizer"), TOKENS)
    contract = LatentContract(
        vae_sha256=components.weights_sha256(vae),
        vae_scaling_factor=float(vae.config["scaling_factor"]),
        vae_factor=8,
        latent_channels=4,
        resolution=pixels,
        tokenizer_sha256=components.tokenizer_sha256(tokenizer),
        empty_tokens=tuple(components.token_ids(tokenizer, [""])[0].tolist()),
    )
    folder.mkdir(parents=True)
    written = []
    for number in range(shards):
        random, name = np.random.default_rng(number), f"{number:05d}"
        keys = [f"{name}{row:04d}" for row in range(SHARD)]
        tar = folder / f"{name}.tar"
        with tarfile.open(tar, "w") as archive:
            for key in keys:
                moments = random.standard_normal(contract.shape, np.float32)
                moments[len(moments) // 2 :] -= 18  # log-variances, as SD's autoencoder has them
                tokens = random.integers(0, WORDS - 2, TOKENS).astype(np.uint16)
                content = pack(moments.astype(np.float16), tokens)
                member = tarfile.TarInfo(f"{key}.safetensors")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        found = index.members(tar)
        pq.write_table(pa.table({"key": keys, **index.columns(keys, found)}), folder / f"{name}.parquet")
        written.append(manifest.Shard(name=name, samples=SHARD, bytes=tar.stat().st_size, sha256=sha256(tar)))
    manifest.write(folder, manifest.Manifest(kind="latents", shards=tuple(written), contract=contract.lines()))


def settings(networks: Path, latents: Path, runs: Path, micro: int) -> list[str]:
    """Of one of SD 1.x's stages, for one process and one pass a step, without logs, saves and roll-backs."""
    never = 10**6
    return [
        "init_from=",
        "text_dropout=0.1",  # as the last of SD 1.5's stages; without it all captions are encoded
        f"runs={runs}",
        f"steps={never}",
        f"batch={{total: {micro}, micro: {micro}}}",
        f"data={{latents: {latents}, canonical_nodes: 1}}",
        f"model.vae.source={networks / 'vae'}",
        f"model.text.encoder={networks / 'text_encoder'}",
        f"model.text.tokenizer={networks / 'tokenizer'}",
        "optim={warmup_steps: 0, grad_clip: 1.0, lr: 1e-5}",
        "engine.zero_stage=1",
        "recovery.spike=0",
        f"checkpoint.every={never}",
        f"log.every={never}",
    ]
