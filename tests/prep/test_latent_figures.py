from dataclasses import replace

import numpy as np
import pytest

from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep.latent_figures import Totals, strange


def made(**figures: list[float | None]) -> Manifest:
    shards = tuple(
        Shard(name=f"{number:05d}", samples=1, bytes=1, sha256="") for number in range(len(figures["latent_std"]))
    )
    return Manifest(kind="latents", shards=shards, lineage={**figures})


def test_totals_are_the_mean_and_deviation_of_all_batches() -> None:
    values = np.random.default_rng(0).normal(3, 5, (7, 4, 8, 8)).astype(np.float16)
    totals = Totals()
    for batch in (values[:4], values[4:]):
        totals.add(batch)
    assert totals.mean == pytest.approx(values.astype(float).mean(), rel=1e-3)
    assert totals.std == pytest.approx(values.astype(float).std(), rel=1e-3)
    assert (Totals().mean, Totals().std) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("latent_mean", 2.0, "shard 00003: its mean is 2, of the median shard 0."),
        ("latent_std", 1.0, "shard 00003: its standard deviation is 1, of the median shard "),
        ("psnr_db", 12.0, "shard 00003: its PSNR of the first pictures is 12, of the median shard 2"),
    ],
)
def test_a_shard_that_is_unlike_the_others_is_named(key: str, value: float, sentence: str) -> None:
    random = np.random.default_rng(1)
    usual = {
        "latent_mean": (0.1 + 0.01 * random.normal(size=9)).round(2).tolist(),
        "latent_std": (5 + 0.05 * random.normal(size=9)).round(2).tolist(),
        "psnr_db": (25 + 0.5 * random.normal(size=9)).round(2).tolist(),
    }
    assert strange(made(**usual)) == []
    usual[key][3] = value
    (said,) = strange(made(**usual))
    assert said.startswith(sentence)


def test_equal_copies_are_said() -> None:
    few = made(latent_std=[1.0], latent_mean=[0.0], psnr_db=[9.0])
    for crops, cropped, said in ((5, 0, ["--crops stored 5 equal copies of each picture"]), (5, 1, []), (1, 0, [])):
        lines = {"crops": crops} if crops > 1 else {}
        found = strange(replace(few, contract=lines, lineage=few.lineage | {"cropped": cropped}))
        assert [sentence.split(": ")[0] for sentence in found] == said
    assert strange(few) == []


def test_shards_that_vary_are_not_strange_nor_few_nor_unknown_nor_better() -> None:
    assert strange(made(latent_std=[1.0, 3.0, 5.0, 7.0, 9.0], latent_mean=[0.0] * 5, psnr_db=[9.0] * 5)) == []
    assert strange(made(latent_std=[1.0, 9.0, 1.0], latent_mean=[0.0, 9.0, 0.0], psnr_db=[9.0, 20.0, 9.0])) == []
    unknown = [None, None, None, None, 5.0]
    assert strange(made(latent_std=unknown, latent_mean=unknown, psnr_db=[25.0, 25.0, 25.0, 25.0, 40.0])) == []
