"""CLIP-SCORE of a picture and its caption: w max(cos, 0), w = 2.5, of their CLIP embeddings (Hessel et al. 2021).

Papers on text-to-image models often print the mean cosine itself, so both are kept. The number belongs to one CLIP:
those of ViT-B/32 (the authors' choice), ViT-L/14 and others do not compare.
"""

from typing import Final

import torch
from torch import Tensor

WEIGHT: Final = 2.5


def cosines(pictures: Tensor, captions: Tensor) -> Tensor:
    """Cosine of each picture's embedding [N, D] with its own caption's [N, D]: float64 [N]."""
    return torch.nn.functional.cosine_similarity(pictures.to(torch.float64), captions.to(torch.float64), dim=1)


def clip_scores(cosine: Tensor) -> Tensor:
    """CLIP-SCORE [N] of cosines [N]."""
    return WEIGHT * cosine.clamp(min=0)
