"""Pictures, networks with random weights and the files of a preparation: all that latents and scores need."""

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from bigdiff.config.scoring import CLIP_MODEL
from bigdiff.data import index, manifest
from bigdiff.prep.layout import Layout
from bigdiff.prep.scorers.heads import AestheticV2
from bigdiff.quickstart.components import write_tokenizer
from bigdiff.runtime.files import sha256

DISTINCT = 96  # pictures, which take turns
SD = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}  # KL-f8's encoder
SMALL = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
SMALL_CLIP = {
    "embed_dim": 768,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def photo(side: int, seed: int) -> bytes:
    """A square JPEG with the spectrum of a photo, stored as build_shards does: quality 95, full colour resolution."""
    random, total = np.random.default_rng(seed), np.zeros((side, side, 3), np.float32)
    for scale in (8, 32, 128, 512):
        small = random.normal(size=(max(2, side * scale // 1024), max(2, side * scale // 1024), 3)).astype(np.float32)
        total += cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC) / scale
    total = (total - total.mean()) / total.std() * 50 + 128
    stream = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def photos(side: int, count: int) -> list[bytes]:
    """`count` of them."""
    different = [photo(side, seed) for seed in range(min(count, DISTINCT))]
    return list(islice(cycle(different), count))


def write_vae(folder: Path, small: bool) -> None:
    """Stable Diffusion's autoencoder, or a small one, and a tokenizer."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**(SMALL if small else SD), **blocks, latent_channels=4, scaling_factor=0.18215)
    vae.save_pretrained(folder / "vae")
    write_tokenizer(folder / "tokenizer", 77)


def write_clip(folder: Path, small: bool) -> tuple[str, str]:
    """The source of OpenAI's ViT-L/14, or of a small CLIP, and the file of an aesthetic head."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    config = SMALL_CLIP if small else open_clip.get_model_config(CLIP_MODEL)
    network = open_clip.model.CLIP(**config)
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, folder / "model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.save(AestheticV2().state_dict(), folder / "head.pth")
    return f"local-dir:{folder}", str(folder / "head.pth")


def write_images(folder: Path, side: int, shards: int, each: int) -> None:
    """An image set as build_shards leaves it."""
    folder.mkdir(parents=True)
    contents, written = photos(side, each), []
    for number in range(shards):
        name = f"{number:05d}"
        keys, tar = [f"{name}{row:06d}" for row in range(each)], folder / f"{name}.tar"
        with tarfile.open(tar, "w") as archive:
            for key, content in zip(keys, contents, strict=True):
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        table = {"key": keys, "caption": list(captions(each)), **index.columns(keys, index.members(tar))}
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
        written.append(manifest.Shard(name=name, samples=each, bytes=tar.stat().st_size, sha256=sha256(tar)))
    manifest.write(folder, manifest.Manifest(kind="images", shards=tuple(written)))


def write_units(output: Path, side: int, units: int, each: int) -> list[str]:
    """Verified pictures before they are scored, as the download leaves them; the names of their units."""
    layout, contents = Layout(output), photos(side, each)
    for folder in (layout.samples, layout.pictures, layout.scores, layout.embeddings):
        folder.mkdir(parents=True)
    lengths = [len(content) for content in contents]
    for number in range(units):
        (layout.pictures / f"{number:05d}").write_bytes(b"".join(contents))
        rows = list(range(each))
        table = {
            "row": rows,
            "key": [f"{row:09d}" for row in rows],
            "caption": list(captions(each)),
            "offset": np.cumsum([0, *lengths[:-1]]),
            "length": lengths,
        }
        pq.write_table(pa.table(table), layout.samples / f"{number:05d}.parquet")
    return [f"{number:05d}" for number in range(units)]


def captions(count: int) -> Iterator[str]:
    """Of some ten words each."""
    return (f"photograph number {row} of an old castle above the river in autumn" for row in range(count))
