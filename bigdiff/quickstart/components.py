"""The quickstart's frozen networks in diffusers' layout: a small autoencoder and text model, and CLIP's tokenizer.

Nothing is fetched: both networks are shipped with the package, made by `train_vae` and `train_clip` beside this module,
and the byte-pair vocabulary is the one that open_clip ships (OpenAI's CLIP, MIT licence).
"""

import gzip
import json
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bigdiff.config.errors import RunError
from bigdiff.runtime.files import write_bytes

MAX_LENGTH: Final = 32  # tokens; the longest caption has 22
# Network -> its files and the module that trains it
SHIPPED: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "vae": (("config.json", "diffusion_pytorch_model.safetensors"), "train_vae"),
    "text_encoder": (("config.json", "model.safetensors"), "train_clip"),
}

_VOCABULARY: Final = "bpe_simple_vocab_16e6.txt.gz"
_SIZE: Final = 49408  # of CLIP's vocabulary: 256 bytes, each also at a word's end, merges, two marks
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def write_components(folder: Path) -> None:
    """Write `folder`/vae, tokenizer and text_encoder, each file whole or not at all.

    Raises:
        RunError: when the installed package lacks a shipped network, or open_clip its vocabulary.
    """
    for part in SHIPPED:
        write_shipped(folder / part, part)
    write_tokenizer(folder / "tokenizer", MAX_LENGTH)


def write_shipped(folder: Path, part: str) -> None:
    """Copy the network `part` of `SHIPPED`, which the module that it names made."""
    names, maker = SHIPPED[part]
    source = files("bigdiff.quickstart") / part
    for name in names:
        if not (source / name).is_file():
            raise RunError(f"{source} has no {name}: run python -m bigdiff.quickstart.{maker} --out {source}")
        write_bytes(folder / name, (source / name).read_bytes())


def write_tokenizer(folder: Path, max_length: int) -> None:
    """CLIP's tokenizer in transformers' layout, padding with <|endoftext|> as SD 1.x does."""
    merges = _merges()
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "bos_token": _BEGIN,
        "eos_token": _END,
        "pad_token": _END,
        "unk_token": _END,
    }
    write_bytes(folder / "vocab.json", json.dumps(_vocabulary(merges)).encode())
    write_bytes(folder / "merges.txt", ("#version: 0.2\n" + "\n".join(merges) + "\n").encode())
    write_bytes(folder / "tokenizer_config.json", (json.dumps(settings, indent=2) + "\n").encode())


def _merges() -> list[str]:
    package = find_spec("open_clip")  # found, not imported: that takes seconds
    places = package.submodule_search_locations if package else None
    if not places or not (Path(places[0]) / _VOCABULARY).is_file():
        raise RunError(f"the package open_clip_torch with {_VOCABULARY} is not installed: run make again")
    with gzip.open(Path(places[0]) / _VOCABULARY, "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")
    return lines[1 : _SIZE - 2 * 256 - 2 + 1]  # a version line first; the file has more merges than CLIP uses


def _vocabulary(merges: list[str]) -> dict[str, int]:
    # Every byte needs a visible character (Radford et al. 2019); the invisible ones get those from 256 on.
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    characters = [chr(code) for code in visible] + [chr(256 + place) for place in range(256 - len(visible))]
    tokens = characters + [f"{character}</w>" for character in characters]
    tokens += ["".join(merge.split()) for merge in merges] + [_BEGIN, _END]
    return {token: number for number, token in enumerate(tokens)}
