"""The measurement behind a Probe: a minute of one machine, by as many processes as it has devices."""

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Final

import torch
import torch.distributed as dist
from torch import nn

from bigdiff.config.errors import RunError
from bigdiff.config.schema import Stage
from bigdiff.engine import optim
from bigdiff.engine.deepspeed import Engine
from bigdiff.engine.precision import bf16, sum_in_fp32
from bigdiff.models import flops
from bigdiff.models.ema import Averages
from bigdiff.models.network import network
from bigdiff.plan.links import Fabric
from bigdiff.plan.probe import Probe
from bigdiff.plan.scaling import Machine, Pace, predict
from bigdiff.runtime.world import World, enter, leave
from bigdiff.train.memory import Weights, own_elements

SECONDS: Final = 6.0  # for each of the measured things, about
LIMIT: Final = 300.0  # seconds after which ranks that say nothing are given up
_SMALL, _LARGE = 64, 1 << 24  # elements of fp32 of the small and the large all-reduce
_SHARE: Final = 1 << 26  # elements of the update at most


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """Of one rank."""

    device: str
    half: bool
    passes: dict[int, list[float]]  # seconds of each pass, by micro-batch
    element: float
    engine: float  # seconds of a whole step of the engine, of one pass of the larger micro-batch
    matmul: float
    rate: float
    latency: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a rank finds the others."""

    rank: int
    ranks: int
    port: int


def measure(stage: Stage, ranks: int, seconds: float = SECONDS) -> Probe:
    """Measure `stage` on this machine with `ranks` processes at once, each thing for about `seconds`.

    Raises:
        UsageError: for a stage that cannot be planned.
        RunError: when a process fails.
    """
    began, counted, weights = time.monotonic(), flops.per_image(stage), _weights(stage)
    found = _all_ranks(stage, ranks, seconds)
    small, large = min(found[0].passes), max(found[0].passes)
    # the slowest rank is waited for
    quick, slow = (max(statistics.median(one.passes[micro]) for one in found) for micro in (small, large))
    image = max((slow - quick) / (large - small), 0.0) if large > small else slow / large
    spreads = [statistics.pstdev(one.passes[large]) / statistics.mean(one.passes[large]) for one in found]
    plain = Probe(
        date=datetime.now(UTC).date().isoformat(),
        device=found[0].device,
        ranks=ranks,
        stage=stage.name,
        flops=counted.total,
        half=found[0].half,
        image=image,
        fixed=max(slow - large * image, 0.0),
        micro=large,
        spread=statistics.mean(spreads),
        element=max(one.element for one in found),
        step=0.0,
        matmul=min(one.matmul for one in found),
        rate=min(one.rate for one in found),
        latency=max(one.latency for one in found),
        seconds=0.0,
    )
    gpu = plain.device != "cpu"
    fabric = Fabric(per_node=ranks, inside=plain.rate or 1.0, between=1.0, latency=plain.latency)
    pace = Pace(image=plain.image, fixed=plain.fixed, element=plain.element, overlap=gpu)
    machine = Machine(pace=pace, fabric=fabric, gpu=gpu, half=plain.half)
    known = predict(_once(stage, ranks), weights, ranks, machine).seconds
    whole = statistics.median(one.engine for one in found)
    return replace(plain, step=max(whole - known, 0.0), seconds=time.monotonic() - began)


def _weights(stage: Stage) -> Weights:
    found = network(stage)
    return Weights(sizes=found.sizes, frozen=found.frozen)


def _once(stage: Stage, ranks: int) -> Stage:
    """`stage` with one pass a step."""
    return replace(stage, batch=replace(stage.batch, total=stage.batch.micro * ranks))


def _all_ranks(stage: Stage, ranks: int, seconds: float) -> list[_Found]:
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    started = [
        context.Process(
            target=_rank, args=(stage, _Place(rank=rank, ranks=ranks, port=port), seconds, pipes[rank][1]), daemon=True
        )
        for rank in range(ranks)
    ]
    # as bigdiff.cluster.submit gives them to a local job; OpenMP reads them when a process loads it
    os.environ |= {"OMP_NUM_THREADS": str(_threads(ranks)), "OMP_WAIT_POLICY": "PASSIVE"}
    for process in started:
        process.start()
    for _, sending in pipes:
        sending.close()
    try:
        return [_received(receiving, rank) for rank, (receiving, _) in enumerate(pipes)]
    finally:
        for process in started:
            process.join(5)
            process.kill()


def _received(pipe: Connection, rank: int) -> _Found:
    try:
        if pipe.poll(LIMIT):
            found = pipe.recv()
            assert isinstance(found, _Found)
            return found
    except EOFError as error:
        raise RunError(f"rank {rank} of the measurement failed; what it wrote stands above") from error
    raise RunError(f"rank {rank} of the measurement said nothing for {LIMIT:g} s")


def _threads(ranks: int) -> int:
    return max(1, (os.cpu_count() or 1) // ranks)


def _rank(stage: Stage, place: _Place, seconds: float, pipe: Connection) -> None:
    """A process of the measurement."""
    os.environ |= {"RANK": str(place.rank), "LOCAL_RANK": str(place.rank), "WORLD_SIZE": str(place.ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.port)}
    torch.set_num_threads(_threads(place.ranks))
    world = enter(int(LIMIT))
    half = bf16(stage, world.device)
    latency, rate = _links(world, seconds / 3)
    found = _Found(
        device=torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        half=half,
        passes=_passes(stage, world, half, 2 * seconds),
        element=_element(stage, world, half, seconds / 3),
        engine=_engine(stage, world, seconds),
        matmul=_matmul(world, half, seconds / 6),
        rate=rate,
        latency=latency,
    )
    pipe.send(found)
    leave()


def _each(world: World, work: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call of `work`, which all ranks call equally often, after two that warm up."""

    def timed() -> float:
        began = time.perf_counter()
        work()
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed()
    world.barrier()
    first = float(world.largest(torch.tensor([timed()])).item())
    world.barrier()
    return [timed() for _ in range(max(5, min(1000, int(seconds / first))))]


def _links(world: World, seconds: float) -> tuple[float, float]:
    """Seconds of a small all-reduce, and bytes/s that each rank sends in a ring of a large one."""
    if world.size == 1:
        return 0.0, 0.0
    small, large = (torch.ones(count, device=world.device) for count in (_SMALL, _LARGE))
    latency = statistics.median(_each(world, lambda: dist.all_reduce(small), seconds))
    taken = statistics.median(_each(world, lambda: dist.all_reduce(large), seconds))
    return latency, 2 * (world.size - 1) / world.size * 4 * _LARGE / max(taken - latency, 1e-9)


def _passes(stage: Stage, world: World, half: bool, seconds: float) -> dict[int, list[float]]:
    """Of the stage's micro-batch and a quarter of it, as the engine computes them, without the engine."""
    found = network(stage, "cpu")
    module = found.denoiser.to(world.device, torch.bfloat16 if half else torch.float32)
    if half and world.device.type == "cpu":
        sum_in_fp32(module)
    sizes = sorted({max(1, stage.batch.micro // 4), stage.batch.micro})
    given = {micro: tuple(one.to(world.device) for one in found.inputs(micro, found.tokens, "cpu")) for micro in sizes}

    def both(micro: int) -> None:
        torch.autograd.backward(module(*given[micro]).float().pow(2).mean())
        module.zero_grad(set_to_none=True)

    taken: dict[int, list[float]] = {micro: [] for micro in sizes}

    def turns() -> None:  # what disturbs the machine meanwhile disturbs both sizes
        for micro in sizes:
            began = time.perf_counter()
            both(micro)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            taken[micro].append(time.perf_counter() - began)

    _each(world, turns, seconds)
    return {micro: times[2:] for micro, times in taken.items()}  # two warmed up


def _element(stage: Stage, world: World, half: bool, seconds: float) -> float:
    """Seconds of the update for each element: what DeepSpeed, AdamW and the averages do with a rank's share."""
    count = min(own_elements(stage, _weights(stage), world.size), _SHARE)
    weights = torch.zeros(count, device=world.device, dtype=torch.bfloat16 if half else torch.float32)
    gradient, master = torch.ones_like(weights), nn.Parameter(weights.float().clone())
    adam, averages = optim.build([master], stage.optim), Averages([master], stage.ema)

    def norm() -> torch.Tensor:
        assert master.grad is not None
        found: torch.Tensor = torch.linalg.vector_norm(master.grad)
        return found

    adam.norm = norm

    @torch.no_grad()
    def update() -> None:
        master.grad = gradient.to(torch.float32, copy=True)
        master.grad.mul_(0.5)
        adam.step()
        weights.copy_(master)
        averages.update([master], 10)

    return statistics.median(_each(world, update, seconds)) / count


def _engine(stage: Stage, world: World, seconds: float) -> float:
    """Seconds of a step of the real engine, with one pass."""
    found, one = network(stage, "cpu"), _once(stage, world.size)
    engine = Engine(found.denoiser, found.denoiser.trained(), one, world)
    averages = Averages(engine.partition.masters, stage.ema)
    inputs = tuple(given.to(world.device) for given in found.inputs(stage.batch.micro, found.tokens, "cpu"))

    def step() -> None:
        engine.backward(engine(*inputs).float().pow(2).mean())
        engine.step(0)
        averages.update(engine.partition.masters, 10)

    return statistics.median(_each(world, step, seconds))


def _matmul(world: World, half: bool, seconds: float) -> float:
    """FLOP/s of a product of two large square matrices."""
    side = 8192 if world.device.type == "cuda" else 1024
    one = torch.ones(side, side, device=world.device, dtype=torch.bfloat16 if half else torch.float32)
    return 2 * side**3 / min(_each(world, lambda: one @ one, seconds))
