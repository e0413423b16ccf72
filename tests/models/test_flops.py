from functools import cache

import open_clip
import pytest
import torch

from bigdiff.config.load import load_stage
from bigdiff.models import flops
from bigdiff.models.flops import Flops

# of SD's kind, and counted in a second
SMALL = ("model.unet.block_out_channels=[32,64,128,128]", "model.unet.attention_head_dim=4")


@cache
def per_image(name: str, *overrides: str) -> Flops:
    return flops.per_image(load_stage(name, overrides))


@pytest.mark.parametrize(("name", "forward", "both"), [("256px", 180.106, 537.343), ("512px", 803.273, 2406.773)])
def test_sd_v1_has_its_known_count(name: str, forward: float, both: float) -> None:
    """GFLOP per image, counted before by other code on another version of torch."""
    found = per_image(name)
    assert found.forward / 1e9 == pytest.approx(forward, abs=1e-3)
    assert found.model / 1e9 == pytest.approx(both, abs=1e-3)
    assert found.recomputed == 0
    assert found.needed == found.model + found.frozen == found.total
    assert found.frozen / 1e9 == pytest.approx(13.30, abs=0.01)  # CLIP ViT-L/14's text model over 77 tokens


def test_checkpointing_recomputes_less_than_a_forward_pass_and_changes_nothing_else() -> None:
    plain, again = per_image("256px", *SMALL), per_image("256px", *SMALL, "engine.gradient_checkpointing=true")
    assert (again.forward, again.backward, again.frozen) == (plain.forward, plain.backward, plain.frozen)
    assert 0.6 * plain.forward < again.recomputed < plain.forward
    assert again.total == plain.total + again.recomputed
    assert again.needed == plain.needed == plain.total


def test_pictures_cost_the_encoder() -> None:
    plain, pictures = per_image("256px", *SMALL), per_image("256px", *SMALL, "data.latents=", "data.images=set")
    assert (pictures.frozen - plain.frozen) / 1e9 == pytest.approx(272.7, abs=0.1)
    assert pictures.model == plain.model


def test_the_picture_tower_of_clip_has_its_published_count() -> None:
    """open_clip's own table of profiles: 81.1 G multiply-adds (docs/model_profile.csv, ViT-L-14, image)."""
    with torch.device("meta"):
        tower = open_clip.model.CLIP(**open_clip.get_model_config("ViT-L-14-quickgelu")).visual
        found = flops.counted(lambda: tower(torch.zeros(1, 3, 224, 224)))
    assert found / 2e9 == pytest.approx(81.1, rel=0.01)


def test_a_trained_text_encoder_is_part_of_the_model() -> None:
    frozen, trained = per_image("256px", *SMALL), per_image("256px", *SMALL, "model.text.train=true")
    assert trained.frozen == 0
    assert trained.forward == frozen.forward + frozen.frozen
    assert trained.backward > frozen.backward + 1.9 * frozen.frozen


def test_dropped_captions_need_no_encoding() -> None:
    every, dropped = per_image("256px", *SMALL), per_image("256px", *SMALL, "text_dropout=0.1")
    assert dropped.model == every.model
    assert dropped.frozen == pytest.approx(0.9 * every.frozen, rel=1e-9)
    pictures = ("data.latents=", "data.images=set")
    both, some = per_image("256px", *SMALL, *pictures), per_image("256px", *SMALL, *pictures, "text_dropout=0.1")
    assert both.frozen - some.frozen == every.frozen - dropped.frozen, "the autoencoder sees every picture"
    learning = (*SMALL, "model.text.train=true")
    assert per_image("256px", *learning) == per_image("256px", *learning, "text_dropout=0.1")
