"""LAION's watermark detector (LAION-5B-WatermarkDetection, watermark_model_v1.pt): EfficientNet-B3 and three layers.

The whole picture is squashed to 256 x 256, as its own code does: a mark in a corner must stay in sight. Its authors and
others report that it misses about half of small marks and takes lettering for marks, so thresholds differ: 0.8 made
LAION's subsets, 0.5 Stable Diffusion's.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import timm
import torch
from PIL import Image
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn

from bigdiff.models import tensors
from bigdiff.models.components import weights_sha256
from bigdiff.models.exact import exact
from bigdiff.models.probes import disc, wings
from bigdiff.prep.scorers import golden
from bigdiff.prep.scorers.scorer import Batch, refused
from bigdiff.runtime.transfer import aside, settled

VERSION: Final = 1
SIDE: Final = 256
TOLERANCE: Final = 1e-4
MARKED: Final = 0  # the class of pictures with a watermark; 1: clear (their training labels: 1 if "clear")
_MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's
_STD: Final = np.array([0.229, 0.224, 0.225], np.float32)
_EPSILON: Final = 1e-5  # of batch normalisation; weights of the tf_ variants have the same names, but 1e-3


def build() -> nn.Module:
    """The network with random weights: 11,817,627 parameters. timm's efficientnet_b3 was named efficientnet_b3a."""
    network: nn.Module = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
    network.classifier = nn.Sequential(
        nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
    )
    return network


class Watermark:
    """Probability that a picture has a watermark, as a scorer."""

    name = "watermark"
    arrow = pa.float64()

    def __init__(self, file: str, device: torch.device) -> None:
        """Read `file`.

        Raises:
            UsageError: when the file cannot be read or is of another model.
        """
        self.network = build()
        tensors.fit(self.network, tensors.read(file, f"scorer {self.name}"), f"scorer {self.name}", file)
        self.fingerprint = f"watermark {VERSION}, weights {weights_sha256(self.network)}"
        self._device = device
        self.network.to(device)
        settled(device)

    def score(self, batch: Batch) -> list[float]:
        """Of each picture."""
        with exact(), aside(self._device):
            found = self.network(self.pixels(batch.pictures).to(self._device)).softmax(dim=1)
            scores: list[float] = found[:, MARKED].double().tolist()
        return scores

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the network sees [B, 3, 256, 256]."""
        small = [picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR) for picture in pictures]
        values = np.stack([np.asarray(each, np.float32) for each in small]) / 255
        return torch.from_numpy((values - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()

    def self_test(self) -> None:
        """Structure, pixels, the meaning of the two classes, and that a picture's score is its own.

        There are no golden values: the published weights cannot be had everywhere.

        Raises:
            UsageError: naming what is wrong.
        """
        self._test_structure()
        self._test_pixels()
        batch = Batch([golden.pattern(300, 200), disc((255, 0, 0)), wings(64)], ["", "", ""])
        marked, scores = self._by_definition(batch), self.score(batch)
        if not np.allclose(scores, marked, atol=TOLERANCE):
            raise refused(self.name, f"{scores[0]:.5f} in place of {marked[0]:.5f}, the share of class {MARKED}")
        alone = self.score(Batch(batch.pictures[:1], [""]))
        if not np.allclose(alone, scores[:1], atol=TOLERANCE):
            raise refused(self.name, "a picture's score changes with the batch, or from one time to the next")

    def _by_definition(self, batch: Batch) -> list[float]:
        """exp(a) / (exp(a) + exp(b)) in float64, a being the first and b the second output of the last layer."""
        seen: list[Tensor] = []
        last = self.network.get_submodule("classifier.5")
        handle = last.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
        try:
            self.score(batch)
        finally:
            handle.remove()
        state = last.state_dict()
        outputs = seen[0].double().cpu() @ state["weight"].double().cpu().T + state["bias"].double().cpu()
        first, second = np.exp(outputs.numpy() - outputs.numpy().max(axis=1, keepdims=True)).T
        marked: list[float] = (first / (first + second)).tolist()
        return marked

    def _test_structure(self) -> None:
        for name, module in self.network.named_modules():
            if isinstance(module, BatchNormAct2d) and module.eps != _EPSILON:
                raise refused(self.name, f"{name} divides by a variance + {module.eps:g} in place of {_EPSILON:g}")
            if isinstance(module, Conv2dSame):
                raise refused(self.name, f"{name} pads as TensorFlow does, which the weights were not trained with")

    def _test_pixels(self) -> None:
        seen = self.pixels([wings(SIDE)])[0]
        for place, channel, colour in ((10, 1, "green"), (SIDE // 2, 0, "red"), (SIDE - 10, 2, "blue")):
            wanted = (np.eye(3, dtype=np.float32)[channel] - _MEAN) / _STD
            if not np.allclose(seen[:, SIDE // 2, place].numpy(), wanted, atol=TOLERANCE):
                raise refused(self.name, f"a {colour} part of a wide picture is not seen where and as it is")
