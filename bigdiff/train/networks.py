"""The networks of a diffusion stage: loaded and built, held against the stage's sets, and made a task."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTokenizer

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage, on_images
from bigdiff.config.speed import Speed
from bigdiff.data import manifest
from bigdiff.data.contract import CROPS, LatentContract
from bigdiff.data.images import ImageSet, sizes
from bigdiff.data.latents import LatentSet
from bigdiff.diffusion import objective
from bigdiff.engine.deepspeed import Engine
from bigdiff.evaluate.preview import Beside, Previewer
from bigdiff.models import components, encoding, speed
from bigdiff.models.denoiser import Denoiser, build_denoiser
from bigdiff.runtime.world import World
from bigdiff.train import trial
from bigdiff.train.data import Sets, fit_shapes
from bigdiff.train.denoising import Denoising
from bigdiff.train.inputs import Captions, Encoded, Latents, Pixels
from bigdiff.train.resuming import warn

TEXT_STATES, TEXT_ENCODER = "text_states", "text_encoder_sha256"  # of the contract of a set that stores text states


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """What a diffusion stage computes with; the denoiser has the text encoder, too."""

    stage: Stage
    vae: AutoencoderKL | None
    tokenizer: CLIPTokenizer | None
    denoiser: Denoiser

    @property
    def module(self) -> Denoiser:
        """What the engine gets."""
        return self.denoiser

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, in a fixed order."""
        return self.denoiser.trained()

    def untrained(self) -> dict[str, nn.Parameter]:
        """The UNet's parameters that model.frozen names, and a frozen text encoder's."""
        return {name: one for name, one in self.denoiser.named_parameters() if not one.requires_grad}

    def loaded(self) -> dict[str, torch.Tensor]:
        """Copies of what learns and was loaded, a text encoder's, in float32; the engine may round its own to bf16."""
        learns = self.trained().items()
        return {name: one.detach().clone() for name, one in learns if name.startswith("text_encoder.")}

    def kept(self) -> set[str]:
        """The names of those that model.frozen takes from what would learn: their values are the run's own."""
        borrowed = () if self.denoiser.train_text else ("text_encoder.",)
        return {name for name in self.untrained() if not name.startswith(borrowed)}


def load(stage: Stage) -> Networks:
    """The networks of `stage`, the trained ones with the seed's weights.

    Raises:
        UsageError: when one is not there, cannot be built, or model.frozen does not fit its parameters.
    """
    text = stage.model.text
    text_encoder = components.load_text_encoder(text.encoder) if text else None
    return Networks(
        stage=stage,
        vae=components.load_vae(stage.model.vae.source) if stage.model.vae else None,
        tokenizer=components.load_tokenizer(text.tokenizer, text.max_length) if text else None,
        denoiser=build_denoiser(stage, text_encoder),
    )


def fit(networks: Networks, sets: Sets) -> None:
    """Raise a UsageError for a set that the stage cannot be trained on."""
    fit_shapes(networks.stage, sets)
    for one in sets:
        if isinstance(one, ImageSet):
            continue
        needed = needed_contract(networks.stage, networks.vae, networks.tokenizer, one.manifest.buckets)
        states = needed_states(networks, one) if networks.denoiser.text_encoder is not None else {}
        refuse_other_latents(one, needed | states | needed_form(networks.stage, one, needed))


def needed_contract(
    stage: Stage, vae: AutoencoderKL | None, tokenizer: CLIPTokenizer | None, buckets: Sequence[str] = ()
) -> dict[str, Any]:
    """What the stage's latent set must have been made with; without text, whatever its captions.

    `buckets` are those of its shards, which `fit_shapes` has looked at.
    """
    assert vae is not None and stage.model.vae is not None, "latents are made with a VAE"
    empty = components.token_ids(tokenizer, [""])[0].tolist() if tokenizer else []
    lines = LatentContract(
        vae_sha256=components.weights_sha256(vae),
        vae_scaling_factor=float(vae.config["scaling_factor"]),
        vae_factor=stage.model.vae.factor,
        latent_channels=stage.model.unet.latent_channels,
        resolution=stage.resolution,
        tokenizer_sha256=components.tokenizer_sha256(tokenizer) if tokenizer else "",
        empty_tokens=tuple(empty),
        buckets=sizes(buckets, "the set"),
    ).lines()
    of_text = () if tokenizer else ("tokenizer_sha256", "empty_tokens", "text_length")
    return {key: value for key, value in lines.items() if key not in of_text}


def needed_form(stage: Stage, latents: LatentSet, needed: dict[str, Any]) -> dict[str, Any]:
    """The lines of the forms of storage that the stage takes besides the plain one.

    Those are mirrored copies and other boxes, which it needs with data.flip and data.crop=random, and the mean alone.
    """
    contract = latents.manifest.contract
    found: dict[str, Any] = {}
    if stage.data.flip or contract.get("mirror") == "stored":
        found["mirror"] = "stored"
    if stage.data.crop == "random":
        stored = contract.get("crops", 1)  # any number of them
        found["crops"] = stored if stored > 1 else CROPS
    if contract.get("stored") == "mean":
        halved = {bucket: [channels // 2, *sides] for bucket, (channels, *sides) in needed.get("buckets", {}).items()}
        channels, *sides = needed.get("shape", [0])
        found |= {"stored": "mean"} | ({"buckets": halved} if halved else {"shape": [channels // 2, *sides]})
    return found


def needed_states(networks: Networks, latents: LatentSet) -> dict[str, Any]:
    """What a set that stores the text encoder's states must say of it; {} where it stores none.

    Raises:
        UsageError: when the stage trains the text encoder, whose states would change.
    """
    contract, text_encoder = latents.manifest.contract, networks.denoiser.text_encoder
    if not contract.get(TEXT_STATES):
        return {}
    assert text_encoder is not None
    if networks.denoiser.train_text:
        raise UsageError(
            f"{latents.location} stores the states of a frozen text encoder, and model.text.train=true would change "
            f"them: encode the set without states, or leave the text encoder as it is"
        )
    return {
        TEXT_STATES: int(text_encoder.config.hidden_size),
        TEXT_ENCODER: components.weights_sha256(text_encoder),
    }


def refuse_other_latents(latents: LatentSet, needed: dict[str, Any]) -> None:
    """Raise a UsageError when the set was not encoded as the stage needs it, line by line."""
    contract = latents.manifest.contract
    wrong = manifest.differences(contract, needed)
    if wrong:
        crops = f" --crops {needed['crops']}" if "crops" in needed.keys() - contract.keys() else ""
        raise UsageError(
            f"{latents.location} does not fit the stage: {'; '.join(wrong)}. "
            f"Encode it again with data_prep/encode_latents.py{crops}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What must be made before the engine takes the weights, and what is made after it."""

    networks: Networks
    captions: Captions | None  # None without text
    preview: Previewer | None
    shapes: tuple[tuple[int, int], ...]  # of the latents that will come

    def task(self, engine: Engine, world: World) -> Denoising:
        """The stage's task under `engine`, with the switches of `speed` on; collective."""
        stage, denoiser = self.networks.stage, self.networks.denoiser
        tried = trial.samples(stage, denoiser, self.shapes, world.device)
        said = speed.apply(denoiser, stage.speed, tried, world)
        captions, more = encoded(stage, denoiser, self.captions, world)
        for line in [*said, *more]:
            if world.first:
                warn(line)
        return Denoising(
            stage=stage,
            engine=engine,
            objective=objective.build(stage.diffusion, stage.seed, stage.batch.total, world.device),
            samples=samples(self.networks, engine.half, world.device),
            captions=captions,
        )


def prepare(networks: Networks, sets: Sets, device: torch.device) -> Prepared:
    """Hold the sets against the stage, and make what needs the networks in float32.

    Raises:
        UsageError: for a set that the stage cannot be trained on, or on which a setting has no effect.
    """
    fit(networks, sets)
    how, stores = networks.stage.speed.text_encoder, [one for one in sets if one.manifest.contract.get(TEXT_STATES)]
    if stores and how != Speed().text_encoder:
        raise UsageError(
            f"speed.text_encoder={how} has no effect on {stores[0].location}, which stores text states: leave it out"
        )
    return Prepared(
        networks=networks,
        captions=captions(networks, sets, device),
        preview=previewer(networks),
        shapes=trial.shapes(networks.stage, sets),
    )


def captions(networks: Networks, sets: Sets, device: torch.device) -> Captions | None:
    """How the stage's captions reach the network."""
    tokenizer, stage = networks.tokenizer, networks.stage
    if tokenizer is None:
        return None
    empty = components.token_ids(tokenizer, [""])
    if any(one.manifest.contract.get(TEXT_STATES) for one in sets):
        with torch.no_grad():  # the same encoder as the set's, by its contract
            empty = networks.denoiser.states(empty).half()
    return Captions(seed=stage.seed, dropout=stage.text_dropout, tokenizer=tokenizer, empty=empty[0].to(device))


def encoded(
    stage: Stage, denoiser: Denoiser, found: Captions | None, world: World
) -> tuple[Captions | Encoded | None, list[str]]:
    """The captions by speed.text_encoder, and sentences on what could not be; `found` as they are where it is trained.

    The networks are those of the engine, which may have rounded them. Collective with speed.text_encoder=compiled.
    """
    if found is None or found.empty.is_floating_point() or denoiser.train_text:
        return found, []
    said, encoder = [], denoiser.text_encoder
    assert encoder is not None, "networks.load"
    if stage.speed.text_encoder == "compiled":
        tried = trial.tokens(stage, denoiser, world.device, torch.Generator().manual_seed(stage.seed))
        encode, line = encoding.compiled(encoder, tried, world, speed.BACKEND)
        if encode is not None:
            return Encoded(captions=found, encode=encode, empty=None), []
        said = [line]
    if stage.speed.text_encoder == "all" or not found.dropout:
        return found, said
    empty = denoiser.states(found.empty[None])[0]
    return Encoded(captions=found, encode=denoiser.states, empty=empty), said


def samples(networks: Networks, half: bool, device: torch.device) -> Latents | Pixels:
    """What noise is added to."""
    stage, vae = networks.stage, networks.vae
    if vae is None:
        return Pixels(grey=stage.model.unet.latent_channels == 1)
    encoder = None
    if on_images(stage.data):  # a copy: the previews decode with the other one, in float32
        encoder = copy.deepcopy(vae).to(device, torch.bfloat16 if half else torch.float32)
        del encoder.decoder
    scaling = float(vae.config["scaling_factor"])
    crop = stage.data.crop == "random"
    return Latents(seed=stage.seed, scaling_factor=scaling, vae=encoder, flip=stage.data.flip, crop=crop)


def previewer(networks: Networks) -> Previewer | None:
    """What draws the stage's pictures, if it wants any.

    A text encoder that is trained is copied: its module will be the engine's, its weights come with each picture.
    """
    stage, text_encoder = networks.stage, networks.denoiser.text_encoder
    if not stage.preview.every:
        return None
    if networks.denoiser.train_text:
        text_encoder = copy.deepcopy(text_encoder)
    frozen = networks.denoiser.frozen_unet()
    return Previewer(
        stage, Beside(vae=networks.vae, text_encoder=text_encoder, tokenizer=networks.tokenizer, frozen=frozen)
    )
