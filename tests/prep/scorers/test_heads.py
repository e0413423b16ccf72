from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.scoring import HEADS, Kind
from bigdiff.models import tensors
from bigdiff.prep.scorers import golden
from bigdiff.prep.scorers.heads import AestheticV2, Head, Norm, Nsfw, by_definition

CPU = torch.device("cpu")
Published = Callable[[str], Path]


def head(kind: Kind, file: Path) -> Head:
    return Head(kind, str(file), "clip x", CPU)


def unit(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, golden.WIDTH))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", HEADS)
def test_the_published_weights_agree_with_their_definition(kind: Kind, published: Published) -> None:
    found = head(kind, published(kind))
    found.self_test()
    features = unit(200)
    right = by_definition(kind, tensors.read(str(published(kind)), f"scorer {kind}"), features)
    np.testing.assert_allclose(found.of(features), right, atol=1e-5)
    assert "(published), on clip x" in found.fingerprint


def test_a_picture_of_the_highest_rating_scores_as_its_authors_say(published: Published) -> None:
    features = np.load(published("aesthetic_v1/vit_l_14_embeddings") / "rating9.npy")
    assert head("aesthetic_v1", published("aesthetic_v1")).of(features)[0] == pytest.approx(11.3, abs=0.05)
    assert head("aesthetic_v2", published("aesthetic_v2")).of(features)[0] == pytest.approx(5.7, abs=0.05)


def test_pictures_rated_higher_score_higher(published: Published) -> None:
    folder = published("aesthetic_v1/vit_l_14_embeddings")
    features = np.concatenate([np.load(folder / f"rating{rating}.npy") for rating in range(10)])
    scores = head("aesthetic_v1", published("aesthetic_v1")).of(features)
    assert scores == sorted(scores)


@pytest.mark.parametrize("kind", HEADS)
def test_other_weights_are_tested_by_definition_and_said_to_be_others(
    kind: Kind, random_weights: dict[str, Path]
) -> None:
    found = head(kind, random_weights[kind])
    found.self_test()
    assert "not the published weights" in found.fingerprint


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("factor", [1.002, 0.998, 10.0, float("nan")])
def test_embeddings_that_are_not_normalised_are_refused(
    kind: Kind, factor: float, random_weights: dict[str, Path]
) -> None:
    features = unit(3)
    features[1] *= factor
    with pytest.raises(RunError, match=r"embedding 1 of the batch has norm .* not normalised"):
        head(kind, random_weights[kind]).of(features)


def test_embeddings_of_another_clip_are_refused(random_weights: dict[str, Path]) -> None:
    with pytest.raises(RunError, match=r"shape \(2, 512\): it needs CLIP L/14's"):
        head("nsfw", random_weights["nsfw"]).of(unit(2)[:, :512])


class WithReLU(nn.Module):
    """V2 as most people would write it from memory."""

    def __init__(self, network: AestheticV2) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(each, nn.ReLU()) for each in network.layers])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(features)
        return scores


class Unnormalised(Nsfw):
    def __init__(self, network: Nsfw) -> None:
        super().__init__()
        self.load_state_dict(network.state_dict())
        self.norm = nn.Identity()  # type: ignore[assignment]


class ByDeviation(Norm):
    """Divides by the variance in place of its root."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.get_buffer("mean")) / self.get_buffer("variance")


def swapped(found: Head) -> None:
    """Two columns of the first layer, exchanged."""
    first = next(parameter for parameter in found.network.parameters() if parameter.ndim == 2)
    first.data[:, [0, 1]] = first.data[:, [1, 0]]


def active_dropout(found: Head) -> None:
    found.network.train()


def with_relu(found: Head) -> None:
    assert isinstance(found.network, AestheticV2)
    found.network = WithReLU(found.network)


def unnormalised(found: Head) -> None:
    assert isinstance(found.network, Nsfw)
    found.network = Unnormalised(found.network).eval()


def by_variance(found: Head) -> None:
    assert isinstance(found.network, Nsfw)
    norm = ByDeviation()
    norm.load_state_dict(found.network.norm.state_dict())
    found.network.norm = norm


def halved(found: Head) -> None:
    """Weights in half precision."""
    for parameter in found.network.parameters():
        parameter.data = parameter.data.half().float()


BREAKS: list[tuple[Kind, Callable[[Head], None]]] = [
    ("aesthetic_v1", swapped),
    ("aesthetic_v2", swapped),
    ("nsfw", swapped),
    ("aesthetic_v2", active_dropout),
    ("aesthetic_v2", with_relu),
    ("nsfw", unnormalised),
    ("nsfw", by_variance),
    ("aesthetic_v2", halved),
]


@pytest.mark.parametrize(("kind", "harm"), BREAKS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("weighted", ["published", "random"])
def test_a_broken_head_is_refused(
    kind: Kind, harm: Callable[[Head], None], weighted: str, published: Published, random_weights: dict[str, Path]
) -> None:
    found = head(kind, published(kind) if weighted == "published" else random_weights[kind])
    found.self_test()
    harm(found)
    with pytest.raises(UsageError, match=f"scorer {kind} does not give its golden values"):
        found.self_test()


@pytest.mark.parametrize("kind", HEADS)
def test_the_golden_values_alone_catch_a_wrong_definition(
    kind: Kind, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should network and definition ever be wrong together."""
    found = head(kind, published(kind))
    monkeypatch.setattr("bigdiff.prep.scorers.heads.by_definition", lambda *_: np.array(found.of(golden.embeddings())))
    found.self_test()
    swapped(found)
    with pytest.raises(UsageError, match="with the published weights"):
        found.self_test()


@pytest.mark.parametrize("kind", HEADS)
def test_weights_of_another_head_are_refused(kind: Kind, random_weights: dict[str, Path]) -> None:
    for other in set(HEADS) - {kind}:
        with pytest.raises(UsageError, match=f"scorer {kind}: weights file .* it is of another model"):
            head(kind, random_weights[other])
