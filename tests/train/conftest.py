"""A run whose parts are all real but for the network: one flat weight in plain torch, fitted to the toy's latents."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

from bigdiff.checkpoint import layout
from bigdiff.checkpoint.content import MOMENTS
from bigdiff.checkpoint.state import TrainState
from bigdiff.checkpoint.writer import CheckpointWriter
from bigdiff.config.load import load_stage
from bigdiff.data.ledger import Place
from bigdiff.engine.deepspeed import Stepped
from bigdiff.engine.partition import Partition, Piece, dense, named
from bigdiff.metrics.meters import Meters
from bigdiff.metrics.writer import Writer
from bigdiff.models.ema import Averages
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import World
from bigdiff.train import data
from bigdiff.train.recovery import Curve
from bigdiff.train.run import Run
from bigdiff.train.task import Losses, Micro
from bigdiff.train.usage import Start, Usage

SHAPE = (2, 4, 4)  # of a toy's latent
RATE = 0.02
START = Start(time=0.0, devices=1, device="cpu", flops=0, network="")
# the engine of each ZeRO stage and precision on one and two ranks, observed once for all tests here
OBSERVED = {
    "name": "observed",
    "resolution": 64,
    "steps": 7,
    "data": {"latents": "none"},
    "batch": {"total": 8, "micro": 4},
    "optim": {"warmup_steps": 2},
    "model": {"vae": {"source": "none"}, "text": {"encoder": "none", "tokenizer": "none"}},
}
SCRIPT = """
import sys
sys.path.insert(0, "tests/train")
import observed
observed.main(sys.argv[1], sys.argv[2:])
"""
BUCKETS = "engine.bucket_elements=250000"
CASES = [
    *(f"engine.zero_stage=0 engine.precision={kind}" for kind in ("fp32", "bf16")),
    *(
        f"engine.zero_stage={stage} engine.precision={kind} {BUCKETS}"
        for stage in (1, 2, 3)
        for kind in ("fp32", "bf16")
    ),
    f"engine.zero_stage=1 engine.precision=fp32 batch.micro=2 {BUCKETS}",
    *(f"engine.zero_stage={stage} engine.precision=bf16 batch.micro=2 {BUCKETS}" for stage in (2, 3)),
    f"engine.zero_stage=2 engine.precision=bf16 {BUCKETS} ema.decays=[0.9,0.99]",
    *(
        f"engine.sharding=overlapped engine.precision={kind} batch.micro={micro} {BUCKETS}"
        for kind in ("fp32", "bf16")
        for micro in (4, 2)
    ),
    f"engine.sharding=overlapped engine.shard_ranks=1 engine.precision=bf16 {BUCKETS}",
    *(f"engine.zero_stage=3 engine.precision=fp32 {BUCKETS} reuse={distance}" for distance in (0, 1_000_000, 10**9)),
]
Seen = dict[str, dict[str, Any]]
SEEN: dict[int, Seen] = {}


class Plain:
    """What bigdiff.engine.deepspeed.Engine promises, for one process in fp32."""

    def __init__(self, accumulation: int) -> None:
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(math.prod(SHAPE)))
        self.partition = Partition(
            layout=dense([("weight", SHAPE)]),
            pieces=(Piece(local=0, start=0, length=self.weight.numel()),),
            masters=(self.weight.data,),
        )
        self.accumulation, self.began, self._passes = accumulation, 0, 0
        self._adam = torch.optim.AdamW([self.weight], lr=RATE)
        self._moments = {name: (torch.zeros_like(self.weight.data),) for name in MOMENTS}

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, step: int) -> Stepped | None:
        self._passes += 1
        if self._passes % self.accumulation:
            return None
        norm = torch.nn.utils.clip_grad_norm_([self.weight], 1.0)
        if norm.isfinite():
            self._adam.step()
            for name, (moment,) in self._moments.items():
                moment.copy_(self._adam.state[self.weight][name])
        self._adam.zero_grad()
        return Stepped(rate=RATE, norm=norm)

    def discard(self) -> None:
        self._passes += 1
        self._adam.zero_grad()

    def communication(self) -> float:
        return 0.0

    def moments(self) -> dict[str, tuple[torch.Tensor, ...]]:
        return self._moments

    def restore(self, master: torch.Tensor, moments: dict[str, torch.Tensor], updates: int) -> None:
        self.weight.data.copy_(master)
        for name, (moment,) in self._moments.items():
            moment.copy_(moments[name])
        state = {name: moment.clone() for name, moment in moments.items()}
        self._adam.state[self.weight] = {"step": torch.tensor(float(updates)), **state}

    def gather(self, local: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return named(self.partition.layout, torch.cat(list(local)))


class Fit:
    """The task: mean squared distance of the means of stored latents from the weight; `spoiled` samples are scaled."""

    def __init__(self, engine: Plain) -> None:
        self.engine = engine
        self.spoiled: dict[int, float] = {}  # factor of the loss, by position
        self.begun: list[list[int]] = []

    def begin(self, batches: Sequence[Micro]) -> None:
        self.begun.append([int(batch.positions[0]) for batch in batches])

    def losses(self, batch: Micro) -> Losses:
        wanted = batch.moments[:, : SHAPE[0]].float()  # type: ignore[union-attr]
        apart = (self.engine.weight.view(SHAPE) - wanted).square().mean((1, 2, 3))
        factors = [self.spoiled.get(position, 1.0) for position in batch.positions.tolist()]
        losses = apart * torch.tensor(factors)
        terms = {"share": (losses.max() / losses.sum())}
        return Losses(total=losses.mean(), per_sample=losses, timesteps=batch.positions % 1000, terms=terms)


@pytest.fixture
def alone() -> Iterator[World]:
    """A world of one with a real process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture
def make_run(alone: World, toy: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Make a run of the toy stage at its begin, with `key=value` arguments; what it tells is in `run.say.told`."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(making(alone, toy, tmp_path, *arguments))


@contextmanager
def making(world: World, toy: Path, runs: Path, *arguments: str) -> Iterator[Run]:
    stage = load_stage(str(toy / "stage.yaml"), [f"runs={runs}", "data.audit=true", "batch.micro=4", *arguments])
    folder = layout.run_folder(stage.runs, stage.name)
    folder.mkdir(parents=True, exist_ok=True)
    engine: Any = Plain(stage.batch.total // stage.batch.micro)
    with data.opened(stage.data) as sets, ExitStack() as closing:
        course = data.course(stage, sets)
        ema = Averages(engine.partition.masters, stage.ema)
        start = data.start_name(stage, world)
        place = Place(start=start, parent="", step=0, rank=0, size=1)
        feed = data.feed(stage, world, sets, course, place, 0)
        names = [*MOMENTS, *ema.tensors]
        checkpoints = CheckpointWriter(folder, world, engine.partition, names, stage.checkpoint)
        writer = Writer(folder / layout.TENSORBOARD, folder / layout.METRICS, 0)
        for opened in (checkpoints, writer, feed.ledger, feed.batches):
            if opened is not None:
                closing.callback(opened.close)
        yield Run(
            stage=stage,
            folder=folder,
            world=world,
            hosts=("here",),
            watch=Watchdog(world, folder, stage.engine.timeout_seconds),
            sets=sets,
            course=course,
            batches=feed.batches,
            quarantine=feed.quarantine,
            ledger=feed.ledger,
            start=start,
            task=Fit(engine),
            engine=engine,
            ema=ema,
            checkpoints=checkpoints,
            losses=[],
            state=TrainState(step=0, samples_seen=0),
            curve=Curve(),
            saved=False,
            began=0,
            identity=data.identity(stage, sets, course, ""),
            meters=Meters(stage.diffusion.train_timesteps, world),
            usage=Usage(starts=(START,), peak=0.0, price=0.0),
            writer=writer,
            preview=None,
            held=None,
            stop=Stop(),
            say=Said(),
        )


class Said:
    """Keeps the lines that a run says."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, line: str) -> None:
        self.told.append(line)


@pytest.fixture
def stage_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage that the cases change."""
    file = tmp_path_factory.getbasetemp() / "observed.yaml"
    file.write_text(yaml.safe_dump(OBSERVED))
    return file


@pytest.fixture
def observed(run_ranks: Callable[..., list[str]], stage_file: Path) -> Callable[[int], Seen]:
    """What the first of so many ranks saw of each case."""

    def seen(ranks: int) -> Seen:
        if ranks not in SEEN:
            total = f"batch.total={4 * ranks}"
            outputs = run_ranks(SCRIPT, ranks, str(stage_file), *(f"{case} {total}" for case in CASES))
            SEEN[ranks] = json.loads(outputs[0].splitlines()[-1])
        return SEEN[ranks]

    return seen
