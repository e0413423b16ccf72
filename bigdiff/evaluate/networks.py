"""The networks of an evaluation, and what they see in pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.evaluation import Judges
from bigdiff.config.scoring import OWN_CONFIG
from bigdiff.evaluate.clip_score import cosines
from bigdiff.models.clip import Clip, Named, load_clip
from bigdiff.models.exact import choose
from bigdiff.models.inception import MEND, Inception

INCEPTION: Final = "inception"  # features [N, 2048] of pictures
CMMD: Final = "cmmd"  # embeddings [N, D] of unit norm of pictures
COSINE: Final = "clip_cosine"  # [N] of pictures and their captions
_MEND: Final = (
    "download open_clip_model.safetensors of timm/vit_large_patch14_clip_224.openai (for --cmmd-clip "
    "timm/vit_large_patch14_clip_336.openai) from the Hugging Face hub where there is network access, and name its file"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """Loaded and tested; what is not wanted is None."""

    inception: Inception | None
    clip: Clip | None
    cmmd: Clip | None
    prefix: str  # before each caption

    @property
    def fingerprint(self) -> dict[str, str]:
        """What the features of each kind depend on: weights by sha256, the preprocessing."""
        found = {INCEPTION: self.inception, CMMD: self.cmmd, COSINE: self.clip}
        told = {name: one.fingerprint for name, one in found.items() if one is not None}
        if COSINE in told:
            told[COSINE] += f", prefix {self.prefix!r}"
        return told

    def of(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> dict[str, Tensor]:
        """Features by name, on the CPU; without `captions` those of the pictures alone.

        Raises:
            RunError: when a network gives numbers that are not finite.
        """
        found: dict[str, Tensor] = {}
        if self.inception is not None:
            found[INCEPTION] = self.inception.features(pictures)
        if self.cmmd is not None:
            found[CMMD] = torch.from_numpy(self.cmmd.image_features(pictures))
        if self.clip is not None and captions:
            seen = torch.from_numpy(self.clip.image_features(pictures))
            said = torch.from_numpy(self.clip.text_features([self.prefix + caption for caption in captions]))
            found[COSINE] = cosines(seen, said)
        for name, values in found.items():
            if not bool(torch.isfinite(values).all()):
                raise RunError(f"{name}: a feature is not finite: the weights do not fit, or the device is broken")
        return found


def refuse_absent(judges: Judges) -> None:
    """Raise a UsageError for the first weights that are not there, with where they are to be had."""
    wanted = (
        ("--inception", judges.inception, MEND),
        ("--clip", judges.clip, _MEND),
        ("--cmmd-clip", judges.cmmd_clip, _MEND),
    )
    for flag, source, mend in wanted:
        if source and not source.startswith(OWN_CONFIG) and not Path(source).expanduser().is_file():
            raise UsageError(f"{flag}: there is no weights file {source}; {mend}")


@cache
def loaded(judges: Judges) -> Networks:
    """The networks that `judges` names, on the GPU where there is one, once in a process.

    Raises:
        UsageError: when weights are absent, unreadable, of another model, or fail their self-test.
    """
    refuse_absent(judges)
    device = choose()
    inception = Inception(judges.inception, judges.resize, device) if judges.inception else None
    clip = _clip("--clip", judges.clip, judges.clip_model, device)
    cmmd = _clip("--cmmd-clip", judges.cmmd_clip, judges.cmmd_model, device)
    return Networks(inception=inception, clip=clip, cmmd=cmmd, prefix=judges.clip_prefix)


def _clip(flag: str, source: str, model: str, device: torch.device) -> Clip | None:
    if not source:
        return None
    named = Named(who=flag, source=flag, model="--clip-model" if flag == "--clip" else "--cmmd-model")
    clip = load_clip(source, model, for_heads=False, device=device, named=named)
    clip.self_test()
    return clip
