"""Proof that it learns: pictures of captions whose combinations training never saw, read by an oracle."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from bigdiff.evaluate.sampling import Sampling, load, sample
from bigdiff.quickstart import oracle, scenes

Table = dict[str, dict[str, float]]  # attribute -> accuracy, chance, oracle

COUNT: Final = 128
SEED: Final = 1  # of the asked-for scenes, their words and the noise; apart from every training seed's scenes
CHANCE: Final = {
    "shape": 1 / len(scenes.SHAPES),
    "colour": 1 / len(scenes.COLOURS),
    "background": 1 / len(scenes.BACKGROUNDS),
    "place": 1 / len(scenes.PLACES),
}


def prove(pipeline: Path, size: int, say: Callable[[str], None], count: int = COUNT) -> Table:
    """For each attribute: how often the pipeline's pictures show it, a blind guess does, and true pictures do.

    Pictures of `size` pixels a side for `count` captions with held-out combinations, by DDIM in 20 steps at
    guidance 3. The last column is the oracle's own accuracy on renders of the same scenes.
    """
    wanted = scenes.held_out_scenes(count, SEED)
    captions = [scenes.caption(scene, SEED, index) for index, scene in enumerate(wanted)]
    settings = Sampling(steps=20, guidance=3.0, scheduler="ddim", seed=SEED, batch=64, height=size, width=size)
    drawn = sample(load(pipeline), captions, settings)
    table = score(drawn, [scenes.render(scene, size) for scene in wanted], wanted)
    say(f"   {count} captions, e.g. {captions[0]!r}")
    return table


def score(drawn: Sequence[Image.Image], true: Sequence[Image.Image], wanted: Sequence[scenes.Scene]) -> Table:
    """The table for pictures `drawn` and `true` renders of the scenes `wanted`."""
    asked = [scenes.combination(scene) for scene in wanted]
    shown, own = (asdict(oracle.accuracy([_judged(one) for one in part], asked)) for part in (drawn, true))
    return {
        attribute: {"accuracy": shown[attribute], "chance": chance, "oracle": own[attribute]}
        for attribute, chance in CHANCE.items()
    }


def _judged(picture: Image.Image) -> oracle.Attributes:
    return oracle.judge(np.asarray(picture.convert("RGB")))
