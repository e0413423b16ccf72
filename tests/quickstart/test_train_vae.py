from importlib.resources import files

import numpy as np
import pytest
import torch

from bigdiff.models import components
from bigdiff.quickstart import oracle, scenes, train_vae


@pytest.mark.parametrize(("size", "least"), [(64, 31.0), (32, 28.0)])
def test_the_shipped_autoencoder_shows_the_oracle_what_was_drawn(size: int, least: float) -> None:
    vae = components.load_vae(str(files("bigdiff.quickstart") / "vae"))
    wanted = scenes.held_out_scenes(64, seed=3)
    drawn = np.stack([np.asarray(scenes.render(scene, size)) for scene in wanted])
    batch = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    assert train_vae.psnr(vae, batch) > least
    with torch.inference_mode():
        shown = vae.decode(vae.encode(train_vae.normalised(batch)).latent_dist.mean).sample.clamp(-1, 1)
    pictures = ((shown + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    right = oracle.accuracy([oracle.judge(one) for one in pictures], [scenes.combination(scene) for scene in wanted])
    assert min(right.shape, right.colour, right.background, right.place) >= 0.95


def test_the_same_plan_gives_the_same_weights_and_learns() -> None:
    plan = train_vae.Plan(scenes=1000, steps=3, batch=2, threads=1)
    first, second = train_vae.train(plan), train_vae.train(plan)
    assert components.weights_sha256(first) == components.weights_sha256(second)
    longer = train_vae.train(train_vae.Plan(scenes=1000, steps=30, batch=4, threads=1))
    unseen = train_vae.pictures(32, 1, 32)
    assert train_vae.psnr(longer, unseen) > train_vae.psnr(first, unseen) + 3
