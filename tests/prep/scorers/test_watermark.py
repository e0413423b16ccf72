from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from bigdiff.config.errors import UsageError
from bigdiff.prep.scorers import golden, watermark
from bigdiff.prep.scorers.scorer import Batch
from bigdiff.prep.scorers.watermark import Watermark, build

CPU = torch.device("cpu")
PICTURES = [golden.pattern(*size) for size in ((640, 480), (100, 300), (256, 256))]


@pytest.fixture
def detector(random_weights: dict[str, Path]) -> Watermark:
    return Watermark(str(random_weights["watermark"]), CPU)


def test_it_has_the_structure_of_the_published_model() -> None:
    network = build()
    state = network.state_dict()
    assert len(state) == 578
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_817_627
    found = {name: tuple(value.shape) for name, value in state.items() if name.startswith("classifier")}
    assert found == {
        "classifier.0.weight": (625, 1536),
        "classifier.0.bias": (625,),
        "classifier.3.weight": (256, 625),
        "classifier.3.bias": (256,),
        "classifier.5.weight": (2, 256),
        "classifier.5.bias": (2,),
    }


def test_the_score_is_that_of_its_authors_code(detector: Watermark, random_weights: dict[str, Path]) -> None:
    """The transforms, the network and the softmax that LAION's inference script has; class 0 is the watermark."""
    network = timm.create_model("efficientnet_b3", num_classes=2)
    network.classifier = nn.Sequential(
        nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
    )
    network.load_state_dict(torch.load(random_weights["watermark"], weights_only=True))
    network.eval()
    prepare = transforms.Compose(
        [
            transforms.Resize((256, 256)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pixels = torch.stack([prepare(picture) for picture in PICTURES])
    torch.testing.assert_close(detector.pixels(PICTURES), pixels, rtol=0, atol=1e-6)
    with torch.no_grad():
        right = network(pixels).softmax(dim=1)
    scores = detector.score(Batch(PICTURES, [""] * len(PICTURES)))
    np.testing.assert_allclose(scores, right[:, 0], atol=1e-5)
    assert np.all(np.abs(right[:, 0] - right[:, 1]).numpy() > 0.1)  # else the order of the classes would not show
    detector.self_test()


def other_class(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(watermark, "MARKED", 1)


def sigmoid(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        detector, "score", lambda batch: detector.network(detector.pixels(batch.pictures))[:, 0].sigmoid().tolist()
    )


def cut_to_the_centre(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    right = detector.pixels

    def cut(pictures: list[Image.Image]) -> torch.Tensor:
        sides = [min(picture.size) for picture in pictures]
        lefts = [(picture.width - side) // 2 for picture, side in zip(pictures, sides, strict=True)]
        return right([one.crop((x, 0, x + s, s)) for one, x, s in zip(pictures, lefts, sides, strict=True)])

    patch.setattr(detector, "pixels", cut)


def exchanged_channels(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    right = detector.pixels
    patch.setattr(detector, "pixels", lambda pictures: right(pictures).flip(1))


def not_normalised(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    right = detector.pixels
    patch.setattr(detector, "pixels", lambda pictures: right(pictures) * 0.225 + 0.45)


def training_mode(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    detector.network.train()


def batch_statistics(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    for module in detector.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()


def epsilon_of_tensorflow(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    for module in detector.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


def padding_of_tensorflow(detector: Watermark, patch: pytest.MonkeyPatch) -> None:
    """The weights' names and shapes fit timm's tf_efficientnet_b3, too."""
    state = detector.network.state_dict()
    detector.network = timm.create_model("tf_efficientnet_b3", num_classes=2)
    detector.network.classifier = build().get_submodule("classifier")
    detector.network.load_state_dict(state)
    detector.network.eval()


BREAKS: dict[Callable[[Watermark, pytest.MonkeyPatch], None], str] = {
    other_class: "share of class 1|in place of",
    sigmoid: "in place of",
    cut_to_the_centre: "a green part of a wide picture",
    exchanged_channels: "a red part|a green part|a blue part",
    not_normalised: "of a wide picture is not seen where and as it is",
    training_mode: "in place of|changes with the batch",
    batch_statistics: "changes with the batch",
    epsilon_of_tensorflow: "variance \\+ 0.001 in place of 1e-05",
    padding_of_tensorflow: "pads as TensorFlow does",
}


@pytest.mark.parametrize("harm", BREAKS, ids=lambda value: value.__name__)
def test_a_broken_detector_is_refused(
    detector: Watermark, harm: Callable[[Watermark, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(detector, monkeypatch)
    with pytest.raises(UsageError, match=f"scorer watermark does not give its golden values .*({BREAKS[harm]})"):
        detector.self_test()


def test_weights_of_another_model_are_refused(random_weights: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"scorer watermark: .* has no .*: it is of another model"):
        Watermark(str(random_weights["nsfw"]), CPU)
