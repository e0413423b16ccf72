from dataclasses import replace
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_cluster, load_stage
from bigdiff.data import manifest
from bigdiff.plan.summary import length, summary

CARD = load_cluster("sd-v1-card")
UNET = {"UNet": 1}


def test_the_lines_of_512px_on_the_cards_machine() -> None:
    assert summary(load_stage("512px"), CARD, {"UNet": 859_520_964}).splitlines() == [
        "parameters:   859,520,964 (UNet)",
        "global batch: 2048 = 32 nodes x 8 processes x 4 samples x 2 accumulation",
        "steps:        194,000",
        "samples:      397,312,000",
        "epochs:       unknown: data/laion-high-resolution/latents-512px is not there yet",
        "starts from:  the EMA weights of 256px",
        "run folder:   runs/512px",
    ]
    assert "starts from:  random weights" in summary(load_stage("256px"), CARD, UNET)
    assert "starts from:  sd.ckpt" in summary(load_stage("256px", ["init_unet=sd.ckpt"]), CARD, UNET)
    at = load_stage("512px", ["init_step=5", "init_weights=raw", "init_optimizer=true"])
    assert "starts from:  the raw weights of 256px at step 5, AdamW's state" in summary(at, CARD, UNET)


@pytest.mark.parametrize("nodes", [1, 4, 16])
def test_the_batch_stays_when_the_nodes_change(nodes: int) -> None:
    line = summary(load_stage("512px"), replace(CARD, nodes=nodes), UNET).splitlines()[1]
    assert line.startswith(f"global batch: 2048 = {nodes} nodes x 8")
    with pytest.raises(UsageError, match="does not divide"):
        summary(load_stage("512px"), replace(CARD, nodes=3), UNET)


def test_epochs_are_counted_where_the_set_is_there(tmp_path: Path) -> None:
    shard = manifest.Shard(name="00000", samples=1000, bytes=1, sha256="0")
    manifest.write(tmp_path, manifest.Manifest(kind="latents", shards=(shard,)))
    stage = load_stage("256px", [f"data.latents={tmp_path}", "steps=20000", "batch.total=512"])
    assert length(stage).epochs == 20000 * 512 / 1000
    assert "epochs:       10240.00 of 1,000 samples" in summary(stage, replace(CARD, nodes=1), UNET)
    (tmp_path / manifest.NAME).write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        length(stage)


def test_an_autoencoders_stage_has_two_networks_and_pictures(tmp_path: Path) -> None:
    shard = manifest.Shard(name="00000", samples=500, bytes=1, sha256="0")
    manifest.write(tmp_path, manifest.Manifest(kind="images", shards=(shard,)))
    stage = load_stage("kl-f8", [f"data.images={tmp_path}"])
    lines = summary(stage, replace(CARD, nodes=1), {"autoencoder": 3000, "discriminator": 20}).splitlines()
    assert lines[0] == "parameters:   3,000 (autoencoder), 20 (discriminator)"
    assert length(stage).epochs == 246_803 * 32 / 500
    assert "data/openimages/images is not there yet" in summary(load_stage("kl-f8"), replace(CARD, nodes=1), UNET)
