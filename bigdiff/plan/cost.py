"""What a stage takes in all: days, device-hours, money, energy."""

from dataclasses import dataclass
from typing import Final

from bigdiff.config.schema import Stage
from bigdiff.plan.scaling import Step

DAY: Final = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one stage, without what stands still: queues, checkpoints, restarts, evaluation."""

    days: float
    device_hours: float
    money: float  # in the price's currency; 0 without a price
    energy: float  # kWh at most, all nodes at their stated limit; 0 for a device that states none

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            days=self.days + other.days,
            device_hours=self.device_hours + other.device_hours,
            money=self.money + other.money,
            energy=self.energy + other.energy,
        )


def cost(stage: Stage, step: Step, price: float, node_watts: float) -> Cost:
    """Of all steps of `stage`; `price` is for a device and hour, `node_watts` for a node of eight devices."""
    seconds = stage.steps * step.seconds
    hours = seconds * step.ranks / 3600
    return Cost(days=seconds / DAY, device_hours=hours, money=hours * price, energy=hours * node_watts / 8 / 1000)
