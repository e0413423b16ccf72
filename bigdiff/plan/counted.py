"""What of a run can be predicted on a device that nothing is known of: bytes, which need no rate."""

from dataclasses import dataclass

from bigdiff.config.schema import Stage
from bigdiff.models import activations
from bigdiff.models.network import network
from bigdiff.plan.forecast import Forecast
from bigdiff.plan.parameters import parameters
from bigdiff.plan.room import checkpoint_bytes, most_bytes
from bigdiff.plan.scaling import fitted
from bigdiff.train.memory import Part, Weights, peak, state, transient
from bigdiff.train.volumes import volumes


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """Of a stage on so many ranks; 0 and nothing where `lacks` says why."""

    checkpoint: int  # bytes of one
    disk: int  # bytes of all checkpoints, at most
    sent: float = 0.0  # bytes that a rank sends in a step
    parts: tuple[Part, ...] = ()  # of a rank's memory
    notes: tuple[str, ...] = ()  # what was taken for what is not there
    lacks: str = ""  # what is not counted, and why

    @property
    def peak(self) -> int:
        """Bytes that a rank holds at most."""
        return peak(self.parts)


def counted(stage: Stage, ranks: int, gpu: bool, half: bool) -> Counted:
    """Of `stage` on `ranks` ranks; it takes about as long as following one forward and backward pass on no data.

    Raises:
        UsageError: for a network that cannot be built, or a batch that does not divide.
    """
    if stage.model.autoencoder is not None:
        total = sum(parameters(stage).values())
        lacks = "times, cost, FLOPs, memory and traffic: the planner does not count the stage of an autoencoder"
        return Counted(checkpoint=checkpoint_bytes(stage, total), disk=most_bytes(stage, total), lacks=lacks)
    found, kept, one = network(stage), activations.per_image(stage, half), fitted(stage, ranks)
    weights = Weights(sizes=found.sizes, frozen=found.frozen)
    return Counted(
        checkpoint=checkpoint_bytes(stage, weights.total),
        disk=most_bytes(stage, weights.total),
        sent=sum(volume.sent(ranks) for volume in volumes(one, weights.sizes, ranks, gpu, half)),
        parts=(*state(one, weights, ranks, half), *transient(one, weights, ranks, half, gpu, kept)),
        notes=found.notes,
    )


def of(found: Forecast) -> Counted:
    """The same of the first row of a forecast, which has counted it."""
    row = found.rows[0]
    return Counted(
        checkpoint=checkpoint_bytes(found.stage, found.weights.total),
        disk=found.storage.checkpoints,
        sent=row.step.sent,
        parts=row.parts,
        notes=found.assumed,
    )
