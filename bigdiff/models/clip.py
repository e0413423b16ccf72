"""CLIP by open_clip: embeddings of pictures and captions, of unit norm, and the proof that they are the right ones.

OpenAI's weights were trained with QuickGELU, x * sigmoid(1.702 x). With GELU in its place the embeddings are close
enough to pass for right and the aesthetic scores come out about 0.6 lower (LAION's notebook picture: 4.44, not 5.05).
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, TypeAlias

import numpy as np
import open_clip
import torch
from httpx import HTTPError
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import Compose, Normalize, PreprocessCfg, ToTensor, image_transform_v2
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from bigdiff.config.errors import UsageError
from bigdiff.config.scoring import OWN_CONFIG
from bigdiff.models import tensors
from bigdiff.models.components import weights_sha256
from bigdiff.models.exact import exact
from bigdiff.models.probes import disc, refused, wings
from bigdiff.models.quick_gelu import fuse_alone
from bigdiff.runtime.transfer import Results, aside, settled, there

Bytes: TypeAlias = np.typing.NDArray[np.uint8]
Floats: TypeAlias = np.typing.NDArray[np.float32]

VERSION: Final = 1  # of what is done to a picture and a caption before and after the network
TOLERANCE: Final = 1e-4
# of an embedding, whose norm is 1, that fp16 may move it by: the aesthetic scores by 0.09 (V2; |w| = 18) and 0.14 (V1;
# 28) at the very most, and by a 28th of that where the direction is any
IN_HALF: Final = 5e-3
_WIDTH: Final = 768  # of CLIP L/14's embeddings
_COLOURS: Final = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}
_IN_FILES: Final = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's state, no weights
_FAILURES: Final = (RuntimeError, OSError, ValueError, KeyError, TypeError, UnpicklingError, HTTPError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """What the user calls a CLIP and its settings."""

    who: str = "scorer clip"
    source: str = "score.clip"
    model: str = "score.clip_model"


class Started(Results):
    """Embeddings on their way."""

    def embeddings(self) -> Floats:
        """[B, D] of unit norm, once they are there."""
        (features,) = self.tensors()
        array: Floats = features.float().numpy()
        return array


class Clip:
    """A frozen CLIP with its own preprocessing and tokenizer."""

    def __init__(
        self,
        network: nn.Module,
        source: str,
        *,
        for_heads: bool,
        device: torch.device,
        who: str = Named().who,
        half: bool = False,
    ) -> None:
        """`network` is open_clip's; `for_heads`: LAION's predictors read its embeddings, so it must be OpenAI's L/14.

        `source` is what open_clip finds its tokenizer by, `who` what a failed self-test calls this CLIP; `half`:
        weights and activations are fp16, which OpenAI's weights were published in.
        """
        self.preprocessing = PreprocessCfg(**open_clip.get_model_preprocess_cfg(network))
        self.transform = _until_bytes(image_transform_v2(self.preprocessing, is_train=False))
        self.tokenizer = open_clip.get_tokenizer(source)
        self.network: Any = network.requires_grad_(False).eval()  # open_clip is untyped
        self._who = who
        self._for_heads, self._quick = for_heads, for_heads or source.endswith("-quickgelu")
        self.fingerprint = self._describe()
        self._device, self._kind = device, torch.float32
        found = [torch.tensor(one) for one in (self.preprocessing.mean, self.preprocessing.std)]
        # there once: a copy with each batch would wait for the one before
        self._statistics = {kind: [one.to(kind) for one in found] for kind in ("cpu", device.type)}
        network.to(device)
        if half:
            self._whole = self._probed()
            self._kind = torch.float16
            network.half()
            self.fingerprint += ", fp16"
        settled(device)

    def fuse(self) -> str:
        """Let its QuickGELU be computed by kernels of our own from now on, as the fingerprint then says.

        Gives what is wrong with them on its device, and leaves the network as it is, or "".
        """
        problem = fuse_alone(self.network, QuickGELU, self._device, self._kind)
        self.fingerprint += "" if problem else ", fused"
        return problem

    def image_features(self, pictures: Sequence[Image.Image]) -> Floats:
        """Embeddings [B, D] of RGB pictures."""
        with aside(self._device):
            return self.start([self.seen(picture) for picture in pictures]).embeddings()

    def text_features(self, captions: Sequence[str]) -> Floats:
        """Embeddings [B, D] of captions, cut to the model's context (77 tokens)."""
        with exact(), aside(self._device):
            tokens = there(self.tokenizer(list(captions)), self._device)
            return Started(self._unit(self.network.encode_text(tokens, normalize=True))).embeddings()

    def start(self, seen: Sequence[Bytes]) -> Started:
        """Begin to compute the embeddings of pictures as `seen` gives them; on a GPU nothing is waited for."""
        pixels = torch.empty((len(seen), *seen[0].shape), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        np.stack(seen, out=pixels.numpy())
        with exact():
            values = self._normalised(there(pixels, self._device)).to(self._kind)
            return Started(self._unit(self.network.encode_image(values, normalize=True)))

    def seen(self, picture: Image.Image) -> Bytes:
        """What the network is shown of a picture, uint8 [S, S, 3]: shorter side to S (bicubic), centre square.

        Any number of threads can do it while the network computes.
        """
        return np.asarray(self.transform(picture))

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the network sees [B, 3, S, S]: that, channels normalised."""
        return self._normalised(torch.from_numpy(np.stack([self.seen(picture) for picture in pictures])))

    def _normalised(self, seen: Tensor) -> Tensor:
        """As torchvision's ToTensor and Normalize, where the bytes [B, S, S, 3] are."""
        mean, std = self._statistics[seen.device.type]
        return (seen.float().div_(255).sub_(mean).div_(std)).permute(0, 3, 1, 2).contiguous()

    def _unit(self, features: Tensor) -> Tensor:
        """fp16 leaves norms off by up to 2.4e-4: divided again."""
        return features if self._kind == torch.float32 else functional.normalize(features.float(), dim=-1)

    def self_test(self) -> None:
        """What any true CLIP gives, without knowing its weights.

        Raises:
            UsageError: when pixels, activation, norms or the choice between three captions are wrong.
        """
        self._test_pixels()
        if self._quick and not self._uses_quick_gelu():
            raise refused(self._who, "its activation is not QuickGELU, which OpenAI's weights need")
        pictures = [disc(colour) for colour in _COLOURS.values()]
        found = self.image_features(pictures)
        captions = self.text_features([f"a {name} circle" for name in _COLOURS])
        for kind, features in (("picture", found), ("caption", captions)):
            norms = np.linalg.norm(features.astype(np.float64), axis=1)
            if not np.all(np.abs(norms - 1) <= TOLERANCE):
                raise refused(self._who, f"{kind} embeddings have norms {norms.round(3).tolist()} in place of 1")
        if self._for_heads and found.shape[1] != _WIDTH:
            raise refused(self._who, f"embeddings are {found.shape[1]} wide, those of CLIP L/14 are {_WIDTH}")
        if self._kind != torch.float32:
            self._test_half()
        close = TOLERANCE if self._kind == torch.float32 else IN_HALF / np.sqrt(found.shape[1])
        if not np.allclose(self.image_features(pictures[1:2]), found[1:2], atol=close):
            raise refused(self._who, "a picture's embedding depends on what else is in the batch")
        chosen = [list(_COLOURS)[place] for place in (found @ captions.T).argmax(axis=1)]
        if chosen != list(_COLOURS):
            raise refused(self._who, f"red, green and blue discs are taken for {', '.join(chosen)} circles")

    def _probed(self) -> list[Floats]:
        """Embeddings of made-up pictures and captions."""
        pictures = [*(disc(colour) for colour in _COLOURS.values()), wings(224)]
        return [self.image_features(pictures), self.text_features([f"a {name} circle" for name in _COLOURS])]

    def _test_half(self) -> None:
        for kind, found, whole in zip(("picture", "caption"), self._probed(), self._whole, strict=True):
            moved = float(np.linalg.norm(found - whole, axis=1).max())
            if not moved <= IN_HALF:
                raise refused(
                    self._who, f"fp16 moves {kind} embeddings by {moved:.2g}, more than {IN_HALF:g}: use fp32"
                )

    def _describe(self) -> str:
        """Weights, activation, and what is done to a picture: not where they came from."""
        activation = "quickgelu" if self._uses_quick_gelu() else "gelu"
        values = json.dumps(asdict(self.preprocessing), sort_keys=True)
        return f"clip {VERSION}, weights {weights_sha256(self.network)}, {activation}, pixels {values}"

    def _uses_quick_gelu(self) -> bool:
        found = [module for name, module in self.network.named_modules() if name.endswith("mlp.gelu")]
        values = torch.linspace(-3, 3, 13)
        quick = values * torch.sigmoid(1.702 * values)
        return bool(found) and all(torch.allclose(module(values), quick, atol=TOLERANCE) for module in found)

    def _test_pixels(self) -> None:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if self._for_heads and (tuple(mean), tuple(std)) != (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD):
            raise refused(self._who, "pictures are not normalised by the mean and deviation of OpenAI's CLIP")
        side = self.network.visual.image_size
        seen = self.pixels([wings(side[0] if isinstance(side, tuple) else side)])[0]
        red = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor(mean)) / torch.tensor(std)
        if not torch.allclose(seen, red[:, None, None].expand_as(seen), atol=TOLERANCE):
            raise refused(self._who, "the centre of a picture is not cut out, or its channels are not red, green, blue")


def load_clip(
    source: str,
    model: str,
    *,
    for_heads: bool,
    device: torch.device,
    named: Named = Named(),
    half: bool = False,
) -> Clip:
    """The CLIP of a `source` and a `model`, as `score.clip` and `score.clip_model` of bigdiff.config.scoring are.

    Raises:
        UsageError: when it is not there, or its weights do not fit.
    """
    if source.startswith(OWN_CONFIG):
        network = _created(source, None, source, named)
        return Clip(network, source, for_heads=for_heads, device=device, who=named.who, half=half)
    if model not in open_clip.list_models():
        raise UsageError(f"{named.model}={model} is not one of open_clip's models, such as ViT-L-14-quickgelu")
    if Path(source).expanduser().is_file():
        network = _created(model, None, source, named)
        state = {name: value for name, value in tensors.read(source, named.who).items() if name not in _IN_FILES}
        tensors.fit(network, state, named.who, source)
    else:
        _check_tag(source, model, named)
        network = _created(model, source, source, named)
    return Clip(network, model, for_heads=for_heads, device=device, who=named.who, half=half)


def _check_tag(tag: str, model: str, named: Named) -> None:
    known: dict[str, Any] | None = get_pretrained_cfg(model, tag)
    if not known:
        tags = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        raise UsageError(
            f"{named.source}={tag}: there is no such file, and {model} has no weights of that name: {tags}"
        )
    quick = bool((open_clip.get_model_config(model) or {}).get("quick_gelu", False))
    if bool(known.get("quick_gelu", False)) != quick:
        other = model.removesuffix("-quickgelu") if quick else f"{model}-quickgelu"
        raise UsageError(
            f"{named.source}={tag} was trained with another activation than {model} has: set {named.model}={other}"
        )


def _created(model: str, tag: str | None, source: str, named: Named) -> nn.Module:
    """A CLIP on the CPU in float32, with weights unless `source` is a file whose tensors are put in afterwards."""
    own = model.startswith(OWN_CONFIG)
    try:
        with _quiet():
            network: nn.Module = open_clip.create_model(
                model, pretrained=tag, precision="fp32", require_pretrained=own or tag is not None, weights_only=True
            )
    except _FAILURES as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{named.source}={source} cannot be loaded ({reason}): download the weights where there is network access "
            f"and name their file"
        ) from error
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's own lines, which say of a model whose weights come next that it has none."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _until_bytes(transform: Any) -> Any:  # noqa: ANN401 (open_clip is untyped)
    """open_clip's transform up to its uint8 picture: what it does after that, a GPU does faster."""
    *first, last, normalisation = transform.transforms
    assert isinstance(last, ToTensor) and isinstance(normalisation, Normalize), "open_clip's version is fixed"
    return Compose(first)
