import pytest
import torch

from bigdiff.config.errors import UsageError
from bigdiff.config.scoring import CLIP_MODEL
from bigdiff.models.clip import load_clip
from bigdiff.models.probes import disc
from bigdiff.prep.scorers import golden
from bigdiff.prep.scorers.scorer import Batch
from bigdiff.prep.scorers.similarity import Similarity


@pytest.fixture
def similarity(tiny_clip: str) -> Similarity:
    return Similarity(load_clip(tiny_clip, CLIP_MODEL, for_heads=False, device=torch.device("cpu")))


def test_the_score_is_the_cosine(similarity: Similarity) -> None:
    clip = similarity._clip
    pictures, captions = [disc((255, 0, 0)), golden.pattern(50, 40)], ["a red circle", "a pattern"]
    similarity.self_test()
    scores = similarity.score(Batch(pictures, captions, clip))
    right = torch.nn.functional.cosine_similarity(
        torch.tensor(clip.image_features(pictures)), torch.tensor(clip.text_features(captions))
    )
    assert scores == pytest.approx(right.tolist(), abs=1e-6)
    assert scores[0] == pytest.approx(1, abs=1e-5)  # this CLIP knows no closer pair
    assert similarity.fingerprint.endswith(clip.fingerprint)


def test_captions_of_other_pictures_are_noticed(similarity: Similarity, monkeypatch: pytest.MonkeyPatch) -> None:
    right = similarity.score
    monkeypatch.setattr(
        similarity, "score", lambda batch: right(Batch(batch.pictures, batch.captions[::-1], batch._clip))
    )
    with pytest.raises(UsageError, match="scorer clip_similarity does not give its golden values"):
        similarity.self_test()


def test_a_distance_in_place_of_the_likeness_is_noticed(
    similarity: Similarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = similarity.score
    for wrong in (lambda batch: [1 - value for value in right(batch)], lambda batch: [100 * v for v in right(batch)]):
        monkeypatch.setattr(similarity, "score", wrong)
        with pytest.raises(UsageError, match="golden values"):
            similarity.self_test()
