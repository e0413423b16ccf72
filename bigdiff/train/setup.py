"""From a stage's config to a running stage: the one place that knows every concrete class."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from bigdiff.checkpoint import layout, store
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.errors import UsageError
from bigdiff.config.load import dump
from bigdiff.config.schema import Stage, accumulation
from bigdiff.data import manifest
from bigdiff.data.contract import LatentContract
from bigdiff.data.damage import Quarantine
from bigdiff.data.latents import LatentSet
from bigdiff.data.ledger import Place
from bigdiff.diffusion import objective
from bigdiff.engine.deepspeed import Engine
from bigdiff.evaluate.preview import Previewer
from bigdiff.metrics.meters import Meters
from bigdiff.metrics.writer import Writer
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser
from bigdiff.models.ema import Ema
from bigdiff.runtime.files import write_bytes, write_json
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.versions import commit, versions
from bigdiff.runtime.world import World, enter, leave
from bigdiff.train import data as stream
from bigdiff.train import loop
from bigdiff.train.run import START, Outcome, Run


def train_stage(stage: Stage) -> Outcome:
    """Train `stage` on this process's share until it is finished or stopped; called by every process alike."""
    stop = Stop()
    stop.listen()
    world = enter(stage.engine.timeout_seconds)
    try:
        accumulation(stage, world.size)
        with building(stage, world, stop) as run:
            outcome = loop.train(run)
        world.barrier()  # nobody leaves while another still talks to it
        return outcome
    finally:
        leave()


@contextmanager
def building(stage: Stage, world: World, stop: Stop) -> Iterator[Run]:
    """The run of `stage` on this process, resumed from its newest good checkpoint; closes what it opened."""
    folder = layout.run_folder(stage.runs, stage.name)
    say = speaker(world)
    vae = components.load_vae(stage.model.vae.source)
    tokenizer = components.load_tokenizer(stage.model.text.tokenizer, stage.model.text.max_length)
    text_encoder = components.load_text_encoder(stage.model.text.encoder)
    with stream.opened(stage.data) as sets, ExitStack() as closing:
        needed = needed_contract(stage, vae, tokenizer)
        for latents in sets:
            refuse_other_latents(latents, needed)
        course = stream.course(stage, sets)
        denoiser = build_denoiser(stage, text_encoder, say)
        engine = Engine(denoiser, denoiser.trained(), stage, world)
        identity = stream.identity(stage, sets, course)
        ema = Ema(engine.partition.masters, stage.ema.decay)
        start = stream.start_name(stage, world)
        state, parent = resume(folder, world, engine, ema, identity)
        if world.first:
            describe(folder, stage, sets)
        quarantine = Quarantine()
        place = Place(start=start, parent=parent, step=state.step, rank=world.rank, size=world.size)
        ledger = stream.ledger(stage, sets, course, place)
        batches = stream.stream(stage, world, sets, course, state.samples_seen, quarantine)
        writer = (
            Writer(folder / layout.TENSORBOARD, folder / layout.METRICS, state.samples_seen) if world.first else None
        )
        for opened in (writer, ledger, batches):  # closed in the reverse order
            if opened is not None:
                closing.callback(opened.close)
        say(
            f"{stage.name}: {engine.partition.total:,} trained parameters, "
            f"{sum(one.manifest.samples for one in sets):,} samples, "
            f"{world.size} processes on {world.device.type}, {'bf16 over fp32' if engine.half else 'fp32'}, "
            f"from step {state.step}"
        )
        yield Run(
            stage=stage,
            folder=folder,
            world=world,
            batches=batches,
            quarantine=quarantine,
            ledger=ledger,
            start=start,
            objective=objective.build(stage.diffusion, stage.seed, world.device),
            engine=engine,
            ema=ema,
            scaling_factor=float(vae.config["scaling_factor"]),
            empty_tokens=torch.tensor(needed["empty_tokens"], device=world.device),
            state=state,
            began=state.samples_seen,
            identity=identity,
            meters=Meters(stage.diffusion.train_timesteps, world),
            writer=writer,
            preview=Previewer(stage, vae, text_encoder, tokenizer) if stage.preview.every else None,
            stop=stop,
            say=say,
        )


def speaker(world: World) -> Callable[[str], None]:
    """Lines for a person on standard output, from rank 0 alone, as they come."""

    def say(line: str) -> None:
        if world.first:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    logging.captureWarnings(True)
    return say


def needed_contract(stage: Stage, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """What the stage's latent set must have been made with."""
    contract = LatentContract(
        vae_sha256=components.weights_sha256(vae),
        vae_scaling_factor=float(vae.config["scaling_factor"]),
        vae_factor=stage.model.vae.factor,
        latent_channels=stage.model.unet.latent_channels,
        resolution=stage.resolution,
        tokenizer_sha256=components.tokenizer_sha256(tokenizer),
        empty_tokens=tuple(components.token_ids(tokenizer, [""])[0].tolist()),
    )
    return contract.lines()


def refuse_other_latents(latents: LatentSet, needed: dict[str, Any]) -> None:
    """Raise a UsageError when the set was not encoded as the stage needs it, line by line."""
    wrong = manifest.differences(latents.manifest.contract, needed)
    if wrong:
        raise UsageError(
            f"{latents.location} does not fit the stage: {'; '.join(wrong)}. "
            f"Encode it again with data_prep/encode_latents.py"
        )


def build_denoiser(stage: Stage, text_encoder: torch.nn.Module, say: Callable[[str], None]) -> Denoiser:
    """The trained module with seeded random weights, or with the EMA weights of the run `init_from` names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        unet = components.build_unet(stage.model.unet, stage.latent_size)
    if stage.engine.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    denoiser = Denoiser(unet, text_encoder, stage.model.text.train)
    if stage.init_from:
        hand_over(stage, denoiser, say)
    denoiser.train()
    if not stage.model.text.train:
        denoiser.text_encoder.eval()
    return denoiser


def hand_over(stage: Stage, denoiser: Denoiser, say: Callable[[str], None]) -> None:
    """Load the EMA weights of the run `init_from` names, all of them or none.

    Raises:
        UsageError: when that run has no checkpoint, or its parameters are not this stage's.
    """
    named = Path(stage.init_from)
    source = named if named.is_dir() else layout.run_folder(stage.runs, stage.init_from)
    checkpoint = layout.latest(source)
    if checkpoint is None:
        raise UsageError(f"init_from={stage.init_from}: {source} has no checkpoint; train that stage first")
    weights = store.read_weights(checkpoint, "ema")
    trained = denoiser.trained()
    other = sorted(
        {name for name in weights if name not in trained} ^ {name for name in trained if name not in weights}
    )
    shapes = [name for name in trained if name in weights and trained[name].shape != weights[name].shape]
    if other or shapes:
        raise UsageError(
            f"init_from={stage.init_from}: {checkpoint} holds another network ({[*other, *shapes][0]} differs)"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    say(f"weights from {checkpoint} (EMA)")


def warn(line: str) -> None:
    """A warning on standard error, from every rank that has it."""
    sys.stderr.write(f"warning: {line}\n")


def resume(folder: Path, world: World, engine: Engine, ema: Ema, identity: Identity) -> tuple[TrainState, str]:
    """Weights, optimizer and EMA from the newest good checkpoint of this run, if it has one.

    Returns where the run stands and the name of the start that wrote the checkpoint ("": unknown or none).

    Raises:
        UsageError: when the checkpoint belongs to another data order, so that a resume would not continue it.
    """
    saved = store.load(folder, world, engine.partition, warn)
    if saved is None:
        return TrainState(step=0, samples_seen=0), ""
    changed = identity.differences(saved.identity)
    if changed:
        raise UsageError(
            f"{folder} cannot be continued: {'; '.join(changed)}. Undo that, or use another `name` or `runs`"
        )
    moments = {name: saved.vectors[name] for name in ("exp_avg", "exp_avg_sq")}
    engine.restore(saved.vectors[store.MASTER], moments, saved.state.step)
    for shadow, part in zip(ema.shadow, engine.partition.split(saved.vectors[store.EMA]), strict=True):
        shadow.copy_(part)
    return saved.state, saved.about.get(START, "")


def describe(folder: Path, stage: Stage, sets: list[LatentSet]) -> None:
    """Write what explains the run to a reader: resolved config, versions and commit, the data's manifest hashes."""
    write_bytes(folder / layout.CONFIG, dump(stage).encode())
    hashes = {one.location: one.fingerprint for one in sets}
    about = {"versions": versions(), "commit": commit(), "latents": hashes}
    write_json(folder / "versions.json", about)
