import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bigdiff.checkpoint import layout, reader
from bigdiff.checkpoint.content import AVERAGES, Content
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.checkpoint.writer import CheckpointWriter
from bigdiff.config.errors import UsageError
from bigdiff.config.load import dump, load_stage
from bigdiff.config.schema import Stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser
from bigdiff.models.ema import Averages
from bigdiff.runtime.world import World, enter, leave
from bigdiff.train import handover, regrouped
from bigdiff.train.handover import Carried
from bigdiff.train.regrouped import Around

Ranks = Callable[..., list[str]]
FIRST = ("name=first", "seed=1", "steps=4", "ema.decays=[0.9,0.5]", "optim.warmup_steps=2")
SECOND = ("name=second", "init_from=first", "seed=2", "ema.decays=[0.9]")

ALONE = Around(kept=set(), loaded={})  # both train the same parameters


def build(stage: Stage, world: World) -> tuple[Engine, Averages]:
    torch.manual_seed(stage.seed)
    unet = components.build_unet(stage.model.unet, stage.latent_size)
    assert stage.model.text is not None
    denoiser = Denoiser(unet, components.load_text_encoder(stage.model.text.encoder), False)
    engine = Engine(denoiser, denoiser.trained(), stage, world)
    return engine, Averages(engine.partition.masters, stage.ema)


def some_steps(stage: Stage, engine: Engine, ema: Averages, updates: int) -> None:
    side, channels = stage.latent_size, stage.model.unet.latent_channels
    for step in range(updates):
        for micro in range(engine.accumulation):
            torch.manual_seed(100 * step + micro)
            noisy = torch.randn(stage.batch.micro, channels, side, side)
            tokens = torch.zeros(stage.batch.micro, 12, dtype=torch.int64)
            engine.backward(engine(noisy, torch.arange(stage.batch.micro), tokens).square().mean())
            engine.step(step)
        ema.update(engine.partition.masters, step)


def save(stage: Stage, world: World, engine: Engine, ema: Averages, state: TrainState) -> Path:
    run = layout.run_folder(stage.runs, stage.name)
    if world.first:
        run.mkdir(parents=True, exist_ok=True)
        (run / layout.CONFIG).write_text(dump(stage))
    tensors = {**engine.moments(), **ema.tensors}
    writer = CheckpointWriter(run, world, engine.partition, tuple(tensors), replace(stage.checkpoint, keep=9))
    content = Content(
        partition=engine.partition,
        tensors=tensors,
        state=state,
        identity=Identity(seed=0, manifest="m", total=8, order="o"),
        about={"stage": stage.name, AVERAGES: json.dumps(ema.began)},
    )
    writer.save(content)
    writer.wait(world)
    writer.close()
    return layout.checkpoint(run, state.step)


@pytest.fixture(scope="module")  # DeepSpeed cannot be set up again in a process after its group was left
def world() -> Iterator[World]:
    here = enter(60)
    yield here
    leave()


@pytest.fixture
def stage_of(toy: Path, tmp_path: Path) -> Callable[..., Stage]:
    def make(*overrides: str) -> Stage:
        return load_stage(str(toy / "stage.yaml"), [f"runs={tmp_path}", *overrides])

    return make


@pytest.fixture
def first(stage_of: Callable[..., Stage], world: World) -> Path:
    """The last checkpoint of a finished run of 4 steps, of which one moved no weights."""
    stage = stage_of(*FIRST)
    engine, ema = build(stage, world)
    some_steps(stage, engine, ema, 3)
    state = TrainState(step=3, samples_seen=24).without_update(8, "a test")
    return save(stage, world, engine, ema, state)


def begun(stage: Stage, world: World) -> tuple[Engine, Averages, handover.Record]:
    engine, ema = build(stage, world)
    record, _ = handover.begin(stage, layout.run_folder(stage.runs, stage.name), world, engine, ema, ALONE)
    return engine, ema, record


def equal(named: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return named.keys() == other.keys() and all(torch.equal(named[name].cpu(), other[name]) for name in named)


def test_the_default_average_becomes_weights_and_averages_and_nothing_else_is_carried(
    first: Path, stage_of: Callable[..., Stage], world: World
) -> None:
    engine, ema, record = begun(stage_of(*SECOND), world)
    expected = reader.read_weights(first, "ema/0.9")
    assert equal(engine.gather(engine.partition.masters), expected)
    assert equal(engine.gather(ema.tensors["ema/0.9"]), expected)
    assert all(not part.any() for parts in engine.moments().values() for part in parts)
    assert (record.carried, ema.began) == (Carried(), {"ema/0.9": 0})
    # the module computes with them, too
    for name, parameter in engine.module.named_parameters():
        if name in expected:
            assert torch.equal(parameter.detach(), expected[name])


def test_the_record_says_what_was_taken_and_its_digest_is_that_of_the_weights(
    first: Path, stage_of: Callable[..., Stage], world: World
) -> None:
    record = begun(stage_of(*SECOND), world)[2]
    run = first.parents[1].with_name("second")
    assert handover.read(run / handover.FILE) == record
    assert (record.step, record.samples_seen, record.updates) == (4, 32, 3)
    assert (record.checkpoint, record.weights) == (str(first), "ema/0.9")
    weights = reader.read_weights(first, "ema/0.9")
    digest = hashlib.sha256(json.dumps([[name, list(one.shape)] for name, one in weights.items()]).encode())
    for one in weights.values():
        digest.update(one.numpy().tobytes())
    assert record.weights_sha256 == digest.hexdigest()
    assert record.index_sha256 == hashlib.sha256((first / layout.INDEX).read_bytes()).hexdigest()
    assert "ema/0.9 weights from" in handover.line(record)


def test_everything_goes_on_when_it_is_asked_for(first: Path, stage_of: Callable[..., Stage], world: World) -> None:
    options = ("init_weights=raw", "init_ema=true", "init_optimizer=true", "init_schedule=true")
    engine, ema, record = begun(stage_of(*SECOND, *options, "ema.decays=[0.9,0.5]"), world)
    assert equal(engine.gather(engine.partition.masters), reader.read_weights(first, "raw"))
    for name in ("ema/0.9", "ema/0.5"):
        assert equal(engine.gather(ema.tensors[name]), reader.read_weights(first, name))
    assert ema.began == {"ema/0.9": -3, "ema/0.5": -3}  # the next update is their fourth
    for name, parts in engine.moments().items():
        assert equal(engine.gather(parts), reader.read_weights(first, name))
    assert record.carried == Carried(updates=3, step=4)
    assert record.weights == "raw"


def test_a_stage_that_takes_everything_over_goes_on_as_if_it_were_one_run(
    first: Path, stage_of: Callable[..., Stage], world: World
) -> None:
    """Three updates, a hand-over and one more are four updates, bit for bit."""
    one = stage_of(*FIRST)
    whole, whole_ema = build(one, world)
    some_steps(one, whole, whole_ema, 3)
    whole.began = 4  # the handed-over run took four steps for its three updates
    options = ("init_weights=raw", "init_ema=true", "init_optimizer=true", "init_schedule=true")
    two = stage_of(*SECOND, *options, "ema.decays=[0.9,0.5]", "optim.warmup_steps=2")
    engine, ema, record = begun(two, world)
    engine.began = record.carried.step
    some_steps(two, whole, whole_ema, 1)
    some_steps(two, engine, ema, 1)
    assert equal(engine.gather(engine.partition.masters), whole.gather(whole.partition.masters))
    for name in ("exp_avg", "exp_avg_sq"):
        assert equal(engine.gather(engine.moments()[name]), whole.gather(whole.moments()[name]))


def test_what_a_run_had_itself_taken_over_counts(first: Path, stage_of: Callable[..., Stage], world: World) -> None:
    options = ("init_optimizer=true", "init_schedule=true")
    middle = stage_of(*SECOND, *options, "steps=6", "optim.warmup_steps=2")
    engine, ema, _ = begun(middle, world)
    save(middle, world, engine, ema, TrainState(step=6, samples_seen=48))
    record = begun(stage_of("name=third", "init_from=second", *options), world)[2]
    assert record.carried == Carried(updates=3 + 6, step=4 + 6)


def test_an_average_that_was_not_tracked_begins_anew_and_says_so(
    first: Path, stage_of: Callable[..., Stage], world: World
) -> None:
    stage = stage_of(*SECOND, "init_ema=true", "ema.decays=[0.9,0.7]")
    engine, ema = build(stage, world)
    _, said = handover.begin(stage, first.parents[1].with_name("second"), world, engine, ema, ALONE)
    assert any("ema/0.7 is not in the checkpoint and begins anew" in sentence for sentence in said)
    assert equal(engine.gather(ema.tensors["ema/0.7"]), reader.read_weights(first, "ema/0.9"))
    assert ema.began == {"ema/0.9": -3, "ema/0.7": 0}


def refused(stage: Stage, world: World) -> str:
    engine, ema = build(stage, world)
    before = [master.clone() for master in engine.partition.masters]
    with pytest.raises(UsageError) as caught:
        handover.begin(stage, layout.run_folder(stage.runs, stage.name), world, engine, ema, ALONE)
    assert all(torch.equal(a, b) for a, b in zip(engine.partition.masters, before, strict=True))
    return str(caught.value)


def test_what_cannot_be_handed_over_is_refused_and_changes_nothing(
    first: Path, stage_of: Callable[..., Stage], world: World
) -> None:
    run = first.parents[1]
    wider = refused(stage_of(*SECOND, "model.unet.block_out_channels=[8,32]"), world)
    assert "holds another network than this stage's model (unet." in wider
    assert "holds raw, ema/0.9, ema/0.5" in refused(stage_of(*SECOND, "init_weights=ema/0.99"), world)
    assert "has no checkpoint of this step, but of 4" in refused(stage_of(*SECOND, "init_step=3"), world)
    assert "has no checkpoint; train that stage first" in refused(stage_of(*SECOND, "init_from=nobody"), world)
    shard = next(first.glob("rank-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert f"{first} is damaged ({shard.name} does not have its recorded sha256)" in refused(stage_of(*SECOND), world)
    assert not (run.with_name("second") / handover.FILE).exists()


def test_a_later_start_is_held_against_the_record(first: Path, stage_of: Callable[..., Stage], world: World) -> None:
    stage = stage_of(*SECOND)
    run = first.parents[1].with_name("second")
    with pytest.raises(UsageError, match=r"has checkpoints and no handover\.json"):
        handover.recorded(stage, run)
    begun(stage, world)
    assert handover.recorded(stage, run) == Carried()
    for override, sentence in {
        "init_from=": "init_from is '', the run began with 'first'",
        "init_weights=raw": "init_weights is 'raw', the run began with 'ema'",
        "init_optimizer=true": "init_optimizer is True, the run began with False",
    }.items():
        with pytest.raises(UsageError, match="cannot be continued") as caught:
            handover.recorded(stage_of(*SECOND, override), run)
        assert sentence in str(caught.value)
    (run / handover.FILE).write_text("{")
    with pytest.raises(UsageError, match=r"handover\.json cannot be read"):
        handover.recorded(stage, run)
    assert handover.recorded(stage_of("name=plain"), run.with_name("plain")) == Carried()


def test_a_start_before_the_first_checkpoint_begins_with_the_same_or_is_refused(
    first: Path, stage_of: Callable[..., Stage], world: World
) -> None:
    record = begun(stage_of(*SECOND), world)[2]
    assert begun(stage_of(*SECOND), world)[2] == record
    later = stage_of(*FIRST, "steps=5")
    engine, ema = build(later, world)
    save(later, world, engine, ema, TrainState(step=5, samples_seen=40))
    engine, ema = build(stage_of(*SECOND), world)
    with pytest.raises(UsageError, match=r"an earlier start began with step 4, now 5, .*delete it"):
        handover.begin(stage_of(*SECOND), first.parents[1].with_name("second"), world, engine, ema, ALONE)


def test_some_weights_are_put_in_by_name_and_the_averages_begin_there(
    stage_of: Callable[..., Stage], world: World
) -> None:
    engine, ema = build(stage_of(), world)
    before = {name: one.clone() for name, one in engine.gather(engine.partition.masters).items()}
    changed = {name: one + 1 for name, one in before.items() if name.startswith("unet.mid_block.")}
    assert changed
    regrouped.put(engine, ema, changed)
    assert equal(engine.gather(engine.partition.masters), before | changed)
    assert equal(engine.gather(ema.tensors["ema/0.9"]), before | changed)
    computed = dict(engine.module.named_parameters())
    assert all(torch.equal(computed[name].detach(), one) for name, one in changed.items())


TAKE = """
import sys
from pathlib import Path
import torch
from bigdiff.config.load import load_stage
from bigdiff.checkpoint import layout
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser
from bigdiff.engine.deepspeed import Engine
from bigdiff.models.ema import Averages
from bigdiff.runtime.world import enter
from bigdiff.train import handover
from bigdiff.train.regrouped import Around

stage = load_stage(sys.argv[1], sys.argv[2:])
world = enter(60)
torch.manual_seed(stage.seed)
unet = components.build_unet(stage.model.unet, stage.latent_size)
denoiser = Denoiser(unet, components.load_text_encoder(stage.model.text.encoder), False)
engine = Engine(denoiser, denoiser.trained(), stage, world)
ema = Averages(engine.partition.masters, stage.ema)
around = Around(kept=set(), loaded={})
record, _ = handover.begin(stage, layout.run_folder(stage.runs, stage.name), world, engine, ema, around)
gathered = {"raw": engine.gather(engine.partition.masters), "ema/0.9": engine.gather(ema.tensors["ema/0.9"])}
gathered |= {name: engine.gather(parts) for name, parts in engine.moments().items()}
if world.first:
    torch.save(gathered, Path(stage.runs) / "gathered.pt")
print(record.weights_sha256)
"""


def test_another_number_of_ranks_and_zero_stage_takes_over_the_same(first: Path, toy: Path, run_ranks: Ranks) -> None:
    runs = first.parents[2]
    options = ("init_weights=raw", "init_ema=true", "init_optimizer=true", "engine.zero_stage=3")
    told = run_ranks(TAKE, 2, str(toy / "stage.yaml"), f"runs={runs}", *SECOND, *options)
    digest = handover.digest(first, reader.read_index(first), "raw")
    assert [words.split()[-1] for words in told] == [digest, digest]
    gathered = torch.load(runs / "gathered.pt", weights_only=True)
    for name, found in gathered.items():
        assert equal(found, reader.read_weights(first, name))
