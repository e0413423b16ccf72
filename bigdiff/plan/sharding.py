"""Which `engine.sharding`, `engine.shard_ranks` and `engine.bucket_elements` the model of plan.scaling says is better.

Where the ranks are many, a ring over all of them takes longer than a backward pass, and where the passes are short, the
host's work on each gradient does: docs/planning.md has the figures. The best bucket of a sharding changes with its
groups, so that all three are tried together. A ZeRO stage is left as it is: another one is another memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from bigdiff.config.engine_rules import sharing
from bigdiff.config.schema import Engine, Stage
from bigdiff.plan import buckets
from bigdiff.plan.scaling import Machine, predict
from bigdiff.train.memory import Weights

Sharding = Literal["deepspeed", "overlapped"]
GAIN: Final = 0.02  # of images/s, from which on a setting is worth a name; the model is no more exact than that
NEAR: Final = 0.01  # of images/s, within which the simpler of two settings is taken


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How the engine shards, as a stage's file says it."""

    sharding: Sharding
    shard_ranks: int
    bucket_elements: int

    def of(self, stage: Stage) -> Stage:
        """`stage` with it."""
        sharding, ranks, bucket = self.sharding, self.shard_ranks, self.bucket_elements
        engine = replace(stage.engine, sharding=sharding, shard_ranks=ranks, bucket_elements=bucket)
        return replace(stage, engine=engine)

    def words(self, engine: Engine) -> tuple[str, ...]:
        """What it changes of `engine`, as overrides."""
        names = ("sharding", "shard_ranks", "bucket_elements")
        found = ((name, getattr(self, name)) for name in names)
        return tuple(f"engine.{name}={value}" for name, value in found if value != getattr(engine, name))


def better(
    stage: Stage, weights: Weights, ranks: int, per_node: int, machines: Mapping[Sharding, Machine]
) -> Iterator[Setting]:
    """Settings that give `stage` GAIN more images/s than its own, the best first.

    Of those within NEAR of the best the one that changes the least comes first, then the one with the larger groups,
    which needs less memory. `machines` by sharding, `per_node` ranks to a node. Whether one fits is not asked here.

    Raises:
        UsageError: when the batch does not divide over the ranks.
    """
    own = predict(stage, weights, ranks, machines[stage.engine.sharding])
    found = {}
    for setting in _settings(stage, weights, ranks, per_node):
        one, machine = setting.of(stage), machines[setting.sharding]
        pace, group = machine.pace, sharing(one, ranks)
        compute, update = own.passes * pace.passed(own.micro), pace.element * weights.total / group
        bound = replace(own, compute=compute, update=update, exposed=0.0)
        if bound.efficiency(own) < 1 + GAIN:  # whatever its buckets are; of few ranks no setting goes on from here
            continue
        efficiency = predict(one, weights, ranks, machine).efficiency(own)
        if efficiency >= 1 + GAIN:
            found[setting] = len(setting.words(stage.engine)), -group, -efficiency
    while found:
        most = max(-order[-1] for order in found.values())
        near = [setting for setting, order in found.items() if -order[-1] >= most * (1 - NEAR)]
        first = min(near, key=found.__getitem__)
        yield first
        del found[first]


def _settings(stage: Stage, weights: Weights, ranks: int, per_node: int) -> Iterator[Setting]:
    """Those that may take the place of the stage's own; a group divides a node, or is of whole ones."""
    engine = stage.engine
    if engine.zero_stage == 0:
        return
    own = engine.bucket_elements
    elements = list(dict.fromkeys([own, *(buckets.sizes(engine.zero_stage, weights, ranks) if ranks > 1 else [])]))
    for size in elements:
        yield Setting(sharding="deepspeed", shard_ranks=0, bucket_elements=size)
    if engine.zero_stage == 3:
        return
    kept = sharing(stage, ranks) if engine.sharding == "overlapped" else 0
    for group in range(1, ranks + 1):
        if ranks % group == 0 and (group % per_node == 0 or per_node % group == 0):
            named = engine.shard_ranks if group == kept else group % ranks
            for size in elements:
                yield Setting(sharding="overlapped", shard_ranks=named, bucket_elements=size)
