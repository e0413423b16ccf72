"""Training on latents in each form of storage: with text states, of mirrored pictures, of crops, of the mean alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigdiff.checkpoint import layout
from bigdiff.config.load import load_stage
from bigdiff.data import manifest
from bigdiff.models import components
from bigdiff.prep import encode, folder, latent_settings
from bigdiff.prep.latent_settings import Asked, Settings

TrainAll = Callable[..., list[str]]
ROUNDING = 3e-4  # relative: what a set stores is rounded to float16
FLIP, CROP = "data.flip=0.5", "data.crop=random"


def draw(where: Path, count: int, size: tuple[int, int] = (12, 10)) -> None:
    """Pictures of soft colours without symmetry, with captions."""
    where.mkdir()
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(where / f"{number:04d}.png")
        (where / f"{number:04d}.txt").write_text(f"picture {number} of a thing")


def narrow_vae(source: str, target: Path) -> str:
    """The same autoencoder with a posterior of next to no width."""
    vae = components.load_vae(source)
    with torch.no_grad():
        vae.quant_conv.weight[2:] = 0
        vae.quant_conv.bias[2:] = -20
    vae.save_pretrained(target)
    return str(target)


@pytest.fixture(scope="module")
def trained(train_all: TrainAll, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with sets in all forms and runs on them, and what was refused."""
    root = tmp_path_factory.mktemp("forms")
    draw(root / "drawn", 48)
    folder.pack(root / "drawn", root / "images", 16, 0, lambda _: None)
    stage = load_stage(str(toy / "stage.yaml"))
    plain = latent_settings.of_stage(stage, Asked(workers=1, least_psnr=-99.0))
    narrow = replace(plain, vae=narrow_vae(plain.vae, root / "narrow"))
    sets: dict[str, Settings] = {
        "plain": plain,
        "states": replace(plain, text_encoder=str(toy / "text_encoder")),
        "mirrored": replace(plain, mirrored=True),
        "all": replace(narrow, mirrored=True, mean_only=True, text_encoder=str(toy / "text_encoder")),
        "narrow": narrow,
    }
    for name, settings in sets.items():
        encode.encode(root / "images", root / name, settings)
    few = [str(toy / "stage.yaml"), f"runs={root}/runs", "steps=5", "optim.warmup_steps=2", "checkpoint.every=5"]
    pictures, thin = ["data.latents=", f"data.images={root}/images"], [f"model.vae.source={root}/narrow"]
    jobs = [
        [*few, "name=on-ids", f"data.latents={root}/plain"],
        [*few, "name=on-states", f"data.latents={root}/states"],
        [*few, "name=unflipped", f"data.latents={root}/mirrored"],
        [*few, "name=flipped", f"data.latents={root}/mirrored", FLIP],
        [*few, "name=flipped-pictures", *pictures, FLIP],
        [*few, "name=refused", f"data.latents={root}/plain", FLIP],
        [*few, "name=trains-text", f"data.latents={root}/states", "model.text.train=true"],
        [*few, "name=all-forms", *thin, f"data.latents={root}/all", FLIP],
        [*few, "name=narrow-pictures", *thin, *pictures, FLIP],
        [*few, "name=narrow-moments", *thin, f"data.latents={root}/narrow"],
        [*few, "name=flipped", f"data.latents={root}/mirrored", "steps=7"],
    ]
    return root, train_all(jobs)


@pytest.fixture(scope="module")
def cropped(train_all: TrainAll, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """As `trained`, of pictures whose room is 2 pixels: they can be cropped where the 3 boxes lie, nowhere else."""
    root = tmp_path_factory.mktemp("crops")
    draw(root / "drawn", 48, (20, 16))
    folder.pack(root / "drawn", root / "images", 16, 0, lambda _: None)
    plain = latent_settings.of_stage(load_stage(str(toy / "stage.yaml")), Asked(workers=1, least_psnr=-99.0))
    drawing = latent_settings.of_stage(
        load_stage(str(toy / "stage.yaml"), [CROP, FLIP]), Asked(workers=1, least_psnr=-99.0)
    )
    for name, settings in {"plain": plain, "boxes": drawing, "five": replace(plain, crops=5)}.items():
        encode.encode(root / "images", root / name, settings)
    few = [str(toy / "stage.yaml"), f"runs={root}/runs", "steps=5", "optim.warmup_steps=2", "checkpoint.every=5"]
    pictures, boxes = ["data.latents=", f"data.images={root}/images"], f"data.latents={root}/boxes"
    jobs = [
        [*few, "name=centre", f"data.latents={root}/plain"],
        [*few, "name=centre-of-boxes", boxes],
        [*few, "name=centre-of-five", f"data.latents={root}/five"],
        [*few, "name=drawn", boxes, CROP],
        [*few, "name=drawn-pictures", *pictures, CROP],
        [*few, "name=both", boxes, CROP, FLIP],
        [*few, "name=both-pictures", *pictures, CROP, FLIP],
        [*few, "name=of-five", f"data.latents={root}/five", CROP],
        [*few, "name=refused", f"data.latents={root}/plain", CROP],
        [*few, "name=unflipped", f"data.latents={root}/five", CROP, FLIP],
        [*few, "name=drawn", boxes, "steps=7"],
    ]
    return root, train_all(jobs)


def losses(root: Path, name: str) -> list[float]:
    lines = (root / "runs" / name / layout.METRICS).read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


def test_stored_states_give_the_losses_of_ids(trained: tuple[Path, list[str]]) -> None:
    root, _ = trained
    assert losses(root, "on-states") == pytest.approx(losses(root, "on-ids"), rel=ROUNDING)


def test_mirrored_latents_give_the_losses_of_mirrored_pictures(trained: tuple[Path, list[str]]) -> None:
    root, _ = trained
    flipped = losses(root, "flipped")
    assert flipped == pytest.approx(losses(root, "flipped-pictures"), rel=ROUNDING)
    assert losses(root, "unflipped") == losses(root, "on-ids") != flipped
    assert flipped != pytest.approx(losses(root, "on-ids"), rel=10 * ROUNDING)


def test_the_mean_of_a_narrow_posterior_gives_the_losses_of_its_samples(trained: tuple[Path, list[str]]) -> None:
    root, _ = trained
    assert losses(root, "all-forms") == pytest.approx(losses(root, "narrow-pictures"), rel=10 * ROUNDING)
    assert losses(root, "all-forms") != pytest.approx(losses(root, "narrow-moments"), rel=10 * ROUNDING)  # flipped
    contract = manifest.read(root / "all", "latents").contract
    assert (contract["stored"], contract["mirror"], contract["shape"]) == ("mean", "stored", [2, 4, 4])


def test_what_does_not_fit_a_set_s_form_is_refused(trained: tuple[Path, list[str]]) -> None:
    root, refused = trained
    assert [line.split()[1] for line in refused] == ["refused", "trains-text", "flipped"]
    assert "mirror is False in the set, 'stored' is needed" in refused[0]
    assert "model.text.train=true would change them" in refused[1]
    assert "mirrored with probability 0.5" in refused[2], "a resumed run keeps its flips"
    assert not (root / "runs" / "refused" / layout.METRICS).exists()


def test_crops_of_latents_give_the_losses_of_crops_of_pictures(cropped: tuple[Path, list[str]]) -> None:
    root, _ = cropped
    for name in ("drawn", "both"):
        assert losses(root, name) == pytest.approx(losses(root, f"{name}-pictures"), rel=ROUNDING)
        assert losses(root, name) != pytest.approx(losses(root, "centre"), rel=3 * ROUNDING)
    assert losses(root, "both") != pytest.approx(losses(root, "drawn"), rel=3 * ROUNDING)
    assert losses(root, "of-five") != pytest.approx(losses(root, "drawn"), rel=3 * ROUNDING)


def test_the_centre_is_read_whatever_is_stored_beside_it(cropped: tuple[Path, list[str]]) -> None:
    root, _ = cropped
    assert losses(root, "centre-of-boxes") == losses(root, "centre-of-five") == losses(root, "centre")
    contract = manifest.read(root / "boxes", "latents").contract
    assert (contract["crop"], contract["crops"], contract["mirror"]) == ("center", 3, "stored")
    assert manifest.read(root / "boxes", "latents").lineage["cropped"] == 48


def test_crops_that_a_set_lacks_or_a_run_did_not_draw_are_refused(cropped: tuple[Path, list[str]]) -> None:
    root, refused = cropped
    assert [line.split()[1] for line in refused] == ["refused", "unflipped", "drawn"]
    assert "crops is 'absent' in the set, 3 is needed" in refused[0] and "--crops 3" in refused[0]
    assert "mirror is False in the set" in refused[1] and "crops is" not in refused[1]
    assert "how pictures are framed (data.crop, data.flip) is '', the checkpoint" in refused[2]
    assert "random crop, mirrored with probability 0'" in refused[2]
    assert not (root / "runs" / "refused" / layout.METRICS).exists()
