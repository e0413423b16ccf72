import numpy as np
import torch

from bigdiff.evaluate.clip_score import clip_scores, cosines


def test_it_is_two_and_a_half_times_the_cosine_and_never_negative() -> None:
    """Hessel et al. 2021, section 3: CLIP-S(c, v) = w max(cos(c, v), 0), w = 2.5."""
    angles = np.radians([0, 60, 90, 120, 180])
    pictures = torch.tensor([[3.0, 0.0]] * 5)
    captions = torch.tensor(np.stack((np.cos(angles), np.sin(angles)), axis=1) * 7)
    found = cosines(pictures, captions)
    np.testing.assert_allclose(found, [1, 0.5, 0, -0.5, -1], atol=1e-7)
    np.testing.assert_allclose(clip_scores(found), [2.5, 1.25, 0, 0, 0], atol=1e-6)


def test_each_picture_is_held_against_its_own_caption() -> None:
    pictures, captions = (torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    unit = [
        part.double().numpy() / np.linalg.norm(part.double().numpy(), axis=1, keepdims=True)
        for part in (pictures, captions)
    ]
    np.testing.assert_allclose(cosines(pictures, captions), (unit[0] * unit[1]).sum(axis=1), atol=1e-12)
