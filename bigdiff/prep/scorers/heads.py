"""LAION's predictors on CLIP L/14's picture embeddings: aesthetics V1 and V2, and the safety of a picture.

Sources: LAION-AI/aesthetic-predictor (V1), christophschuhmann/improved-aesthetic-predictor (V2, whose layers have no
activations between them), LAION-AI/CLIP-based-NSFW-Detector. The last one's published network took five components of
the embedding for categories; like every torch port of it, this one takes their values, so that its scores differ a
little from LAION's `punsafe` column.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from bigdiff.config.errors import RunError
from bigdiff.config.scoring import Kind
from bigdiff.models import tensors
from bigdiff.models.components import weights_sha256
from bigdiff.models.exact import exact
from bigdiff.prep.scorers import golden
from bigdiff.prep.scorers.scorer import Batch, Floats, refused
from bigdiff.runtime.transfer import aside, settled

Doubles = np.typing.NDArray[np.float64]
VERSION: Final = 1  # of what is done to an embedding; another number is another score
TOLERANCE: Final = 1e-4  # of golden values, for other processors' sums
NORM: Final = 1e-3  # how far an embedding's norm may be from 1


class AestheticV2(nn.Module):
    """768-1024-128-64-16-1: together one affine map."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(768, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scores [B, 1] of embeddings [B, 768]."""
        scores: Tensor = self.layers(features)
        return scores


class Norm(nn.Module):
    """Each component less its mean, over its deviation, both as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(768))
        self.register_buffer("variance", torch.ones(768))

    def forward(self, features: Tensor) -> Tensor:
        """[B, 768] -> [B, 768]."""
        return (features - self.get_buffer("mean")) / self.get_buffer("variance").sqrt()


class Nsfw(nn.Module):
    """Normalisation, 768-64-512-256-1 with ReLU between, sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()
        self.linear_1, self.linear_2 = nn.Linear(768, 64), nn.Linear(64, 512)
        self.linear_3, self.linear_4 = nn.Linear(512, 256), nn.Linear(256, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Probabilities [B, 1] of embeddings [B, 768]."""
        hidden = self.linear_1(self.norm(features)).relu()
        hidden = self.linear_3(self.linear_2(hidden).relu()).relu()
        return torch.sigmoid(self.linear_4(hidden))


def by_definition(kind: Kind, state: tensors.State, features: Floats) -> Doubles:
    """Scores [B] in float64 from the file's tensors alone: what the networks must give."""
    values = features.astype(np.float64)
    if kind == "aesthetic_v1":
        return _affine(state, "", values)[:, 0]
    if kind == "aesthetic_v2":
        for layer in (0, 2, 4, 6, 7):
            values = _affine(state, f"layers.{layer}.", values)
        return values[:, 0]
    values = (values - _double(state["norm.mean"])) / np.sqrt(_double(state["norm.variance"]))
    for layer in (1, 2, 3):
        values = np.maximum(_affine(state, f"linear_{layer}.", values), 0)
    return 1 / (1 + np.exp(-_affine(state, "linear_4.", values)[:, 0]))


_NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    "aesthetic_v1": lambda: nn.Linear(768, 1),
    "aesthetic_v2": AestheticV2,
    "nsfw": Nsfw,
}


class Head:
    """One of them, as a scorer."""

    arrow = pa.float64()

    def __init__(self, kind: Kind, file: str, clip: str, device: torch.device) -> None:
        """Read `file`; `clip` is the fingerprint of the embeddings' CLIP.

        Raises:
            UsageError: when the file cannot be read or is of another model.
        """
        self.name = kind
        self._kind: Kind = kind
        self._state = tensors.read(file, f"scorer {kind}")
        self.network = _NETWORKS[kind]()
        tensors.fit(self.network, self._state, f"scorer {kind}", file)
        sha256 = weights_sha256(self.network)
        self._golden = golden.SCORES[kind].get(sha256)
        known = "published" if self._golden else "not the published weights"
        self.fingerprint = f"{kind} {VERSION}, weights {sha256} ({known}), on {clip}"
        self._device = device
        self.network.to(device)
        settled(device)

    def score(self, batch: Batch) -> list[float]:
        """Of each picture."""
        return self.of(batch.image_features)

    def of(self, features: Floats) -> list[float]:
        """Of embeddings [B, 768].

        Raises:
            RunError: when they are not of that width, or not of unit norm, which the heads were trained on.
        """
        if features.ndim != 2 or features.shape[1] != golden.WIDTH:
            raise RunError(f"scorer {self.name}: embeddings of shape {features.shape}: it needs CLIP L/14's, [B, 768]")
        norms = np.linalg.norm(features.astype(np.float64), axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM))
        if len(wrong):
            raise RunError(
                f"scorer {self.name}: embedding {wrong[0]} of the batch has norm {norms[wrong[0]]:.4g}, not 1: it is "
                f"not normalised, and the score would be far off"
            )
        with exact(), aside(self._device):
            scores: list[float] = self.network(torch.from_numpy(features).to(self._device))[:, 0].double().tolist()
        return scores

    def self_test(self) -> None:
        """Made-up embeddings get the scores of the published weights, and in any case those of the definition."""
        features = golden.embeddings()
        scores = self.of(features)
        _compare(self.name, scores, by_definition(self._kind, self._state, features).tolist(), "by definition")
        if self._golden is not None:
            _compare(self.name, scores, self._golden, "with the published weights")


def _compare(name: str, scores: Sequence[float], right: Sequence[float], how: str) -> None:
    for number, (score, value) in enumerate(zip(scores, right, strict=True)):
        if not abs(score - value) <= TOLERANCE:
            raise refused(name, f"probe {number} scores {score:.5f} in place of {value:.5f} {how}")


def _affine(state: tensors.State, prefix: str, values: Doubles) -> Doubles:
    product: Doubles = values @ _double(state[f"{prefix}weight"]).T + _double(state[f"{prefix}bias"])
    return product


def _double(tensor: Tensor) -> Doubles:
    array: Doubles = tensor.double().numpy()
    return array
