from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.data.damage import Consumed
from bigdiff.data.images import ImageBatch
from bigdiff.data.latents import Batch, LatentSet
from bigdiff.data.member import layout, pack
from bigdiff.diffusion import objective
from bigdiff.models import components, speed
from bigdiff.models.denoiser import Denoiser
from bigdiff.runtime.world import World
from bigdiff.train import networks
from bigdiff.train.denoising import Denoising
from bigdiff.train.inputs import Captions, Encoded, Latents

CPU = torch.device("cpu")


def test_the_set_of_the_stage_is_accepted_and_others_are_refused_line_by_line(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    assert stage.model.vae and stage.model.text
    vae = components.load_vae(stage.model.vae.source)
    tokenizer = components.load_tokenizer(stage.model.text.tokenizer, stage.model.text.max_length)
    with LatentSet(stage.data.latents) as latents:
        needed = networks.needed_contract(stage, vae, tokenizer)
        networks.refuse_other_latents(latents, needed)
        with torch.no_grad():
            next(vae.parameters()).add_(1)
        shorter = components.load_tokenizer(stage.model.text.tokenizer, 8)
        with pytest.raises(UsageError) as caught:
            networks.refuse_other_latents(latents, networks.needed_contract(stage, vae, shorter))
    sentence = str(caught.value)
    assert "vae_sha256" in sentence
    assert "text_length is 12 in the set, 8 is needed" in sentence
    assert "encode_latents" in sentence
    assert "resolution" not in sentence


@pytest.mark.parametrize(
    ("crop", "stored", "needed"),
    [("center", None, {}), ("center", 5, {}), ("random", None, {"crops": 3}), ("random", 5, {"crops": 5})],
)
def test_a_stage_that_draws_its_crops_needs_some_and_another_takes_any(
    toy: Path, crop: str, stored: int | None, needed: dict[str, int]
) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"data.crop={crop}"])
    with LatentSet(stage.data.latents) as latents:
        if stored is not None:
            latents.manifest.contract["crops"] = stored
        assert networks.needed_form(stage, latents, {}) == needed
        if crop == "center" or stored:
            networks.refuse_other_latents(latents, needed)
            return
        with pytest.raises(UsageError, match=r"crops is 'absent' in the set, 3 is needed.*encode_latents.py --crops 3"):
            networks.refuse_other_latents(latents, needed)


def batch(position: int, count: int = 3) -> Batch:
    """A micro-batch of the toy's shapes that stands there in the run; its captions are the same everywhere."""
    moments = torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(0)).half().numpy()
    tokens = np.random.default_rng(0).integers(49000, size=(count, 12)).astype(np.uint16)
    members = [pack(moments[row], tokens[row]) for row in range(count)]
    return Batch(
        raw=torch.frombuffer(bytearray(b"".join(members)), dtype=torch.uint8).view(count, -1),
        layout=layout(4, 4, 4, 12),
        bucket="",
        positions=torch.arange(position, position + count),
        consumed=Consumed(position=position, samples=count, digest=0, substituted=()),
        wait_seconds=0.0,
    )


def task(stage: Stage, denoiser: Any, captions: Captions | Encoded | None) -> Denoising:
    return Denoising(
        stage=stage,
        engine=denoiser,
        objective=objective.build(stage.diffusion, stage.seed, stage.batch.total, CPU),
        samples=Latents(seed=stage.seed, scaling_factor=0.5),
        captions=captions,
    )


def passed(one: Denoising, denoiser: Denoiser, given: Batch) -> dict[str, torch.Tensor]:
    """The loss, and the gradient of each parameter that learns."""
    denoiser.zero_grad()
    total = one.losses(given).total
    total.backward()
    gradients = {name: weight.grad for name, weight in denoiser.named_parameters() if weight.grad is not None}
    assert gradients.keys() == denoiser.trained().keys()
    return {"loss": total.detach(), **{name: found.clone() for name, found in gradients.items()}}


@pytest.mark.parametrize("how", ["kept", "compiled"])
@pytest.mark.parametrize(("position", "kept"), [(1, 3), (5, 2), (10, 1), (14, 0)])
def test_however_captions_are_encoded_loss_and_gradients_are_the_same(
    toy: Path, alone: World, monkeypatch: pytest.MonkeyPatch, how: str, position: int, kept: int
) -> None:
    monkeypatch.setattr(
        speed, "BACKEND", "eager"
    )  # what compilers make of it is tested beside the code that calls them
    torch.compiler.reset()
    batch_size = ["batch.micro=3", "batch.total=3"]
    stage = load_stage(
        str(toy / "stage.yaml"), ["seed=3", "text_dropout=0.5", *batch_size, f"speed.text_encoder={how}"]
    )
    found = networks.load(stage)
    captions = networks.captions(found, [], CPU)
    encoded, said = networks.encoded(stage, found.denoiser, captions, alone)
    assert isinstance(captions, Captions) and isinstance(encoded, Encoded) and said == []
    assert (encoded.empty is None) is (how == "compiled") and len(captions.kept(batch(position))) == kept
    plain = passed(task(stage, found.denoiser, captions), found.denoiser, batch(position))
    other = passed(task(stage, found.denoiser, encoded), found.denoiser, batch(position))
    for name, one in plain.items():
        torch.testing.assert_close(other[name], one, rtol=1e-5, atol=1e-5 * float(one.abs().max()), msg=name)


def test_captions_of_pictures_are_skipped_alike(toy: Path, alone: World) -> None:
    stage = load_stage(str(toy / "stage.yaml"), ["seed=3", "text_dropout=0.5"])
    found = networks.load(stage)
    captions = networks.captions(found, [], CPU)
    encoded, _ = networks.encoded(stage, found.denoiser, captions, alone)
    assert captions is not None and isinstance(encoded, Encoded)
    stored = batch(5)
    pictures = ImageBatch(
        pixels=torch.zeros(3, 3, 8, 8, dtype=torch.uint8),
        captions=("a red thing", "blue", "a green thing"),
        keys=("a", "b", "c"),
        bucket="",
        positions=stored.positions,
        consumed=stored.consumed,
        wait_seconds=0.0,
    )
    assert captions.kept(pictures).tolist() == [0, 2]
    torch.testing.assert_close(encoded.text(pictures), found.denoiser.states(captions.text(pictures)))


def test_dropped_captions_of_a_text_encoder_that_learns_have_a_gradient(toy: Path, alone: World) -> None:
    stage = load_stage(str(toy / "stage.yaml"), ["seed=3", "text_dropout=0.5", "model.text.train=true"])
    found = networks.load(stage)
    captions, said = networks.encoded(stage, found.denoiser, networks.captions(found, [], CPU), alone)
    assert isinstance(captions, Captions) and said == [] and not len(captions.kept(batch(14)))
    gradients = passed(task(stage, found.denoiser, captions), found.denoiser, batch(14))
    of_text = [one for name, one in gradients.items() if name.startswith("text_encoder.")]
    assert sum(bool(one.any()) for one in of_text) > len(of_text) / 2


def test_nothing_is_put_in_where_nothing_is_dropped_or_all_is_asked_for(toy: Path, alone: World) -> None:
    for settings in (["text_dropout=0"], ["speed.text_encoder=all"]):
        stage = load_stage(str(toy / "stage.yaml"), settings)
        found = networks.load(stage)
        captions = networks.captions(found, [], CPU)
        assert networks.encoded(stage, found.denoiser, captions, alone) == (captions, [])


def test_stored_states_are_taken_as_they_are_and_no_encoder_can_be_asked_for(toy: Path, alone: World) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    with LatentSet(stage.data.latents) as latents:
        latents.manifest.contract[networks.TEXT_STATES] = 16
        found = networks.load(stage)
        captions = networks.captions(found, [latents], CPU)
        assert captions is not None and captions.empty.dtype == torch.float16
        assert networks.encoded(stage, found.denoiser, captions, alone) == (captions, [])
        latents.manifest.contract.update(networks.needed_states(found, latents))
        networks.prepare(found, [latents], CPU)
        for how in ("all", "compiled"):
            asked = networks.load(load_stage(str(toy / "stage.yaml"), [f"speed.text_encoder={how}"]))
            with pytest.raises(UsageError, match=f"speed.text_encoder={how} has no effect on .*latents, which stores"):
                networks.prepare(asked, [latents], CPU)
