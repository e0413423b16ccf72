"""Which settings of the engine, of its speed and of the recovery fit each other, the batch and the machine."""

from typing import Final

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Engine, Recovery, Stage, accumulation
from bigdiff.config.speed import Speed

AUTO: Final = "auto"  # of engine.gradient_checkpointing


def engine_rules(stage: Stage) -> list[tuple[bool, str]]:
    """(wrong, sentence) pairs, as in bigdiff.config.rules."""
    engine = stage.engine
    return [
        (
            engine.bucket_elements <= 0 or engine.bucket_elements % 2 == 1,
            f"engine.bucket_elements={engine.bucket_elements} must be positive and even",
        ),
        (
            engine.zero_stage == 0 and engine.bucket_elements != Engine().bucket_elements,
            "engine.bucket_elements has no effect with engine.zero_stage=0",
        ),
        (
            engine.sharding == "overlapped" and engine.zero_stage not in (1, 2),
            f"engine.sharding=overlapped is for engine.zero_stage=1 and 2, not for {engine.zero_stage}: take one of "
            f"them, which are then the same, or engine.sharding=deepspeed",
        ),
        (engine.shard_ranks < 0, f"engine.shard_ranks={engine.shard_ranks} must not be negative; 0 is all ranks"),
        (
            engine.shard_ranks > 0 and engine.sharding != "overlapped",
            f"engine.shard_ranks={engine.shard_ranks} has no effect with engine.sharding={engine.sharding}",
        ),
        *_checkpointing_rules(stage),
        (engine.timeout_seconds <= 0, f"engine.timeout_seconds={engine.timeout_seconds} must be positive"),
        (stage.optim.grad_clip < 0, f"optim.grad_clip={stage.optim.grad_clip} must not be negative; 0 is no clipping"),
    ]


def _checkpointing_rules(stage: Stage) -> list[tuple[bool, str]]:
    """Whether the UNet has the blocks that are named is seen where it is built (bigdiff.models.checkpointing)."""
    how, memory = stage.engine.gradient_checkpointing, stage.engine.memory_gb
    return [
        (
            isinstance(how, str) and not all(one.strip() for one in how.split(",")),
            f"engine.gradient_checkpointing={how!r} has an empty name: give true, false, auto, or names with commas "
            f"between",
        ),
        (
            isinstance(how, str) and stage.model.autoencoder is not None,
            f"engine.gradient_checkpointing={how} is of a UNet's blocks: with model.autoencoder it is true or false",
        ),
        (memory < 0, f"engine.memory_gb={memory:g} must not be negative; 0 is what the device has"),
        (
            memory > 0 and how != AUTO,
            f"engine.memory_gb={memory:g} has no effect without engine.gradient_checkpointing=auto: leave it out",
        ),
    ]


def speed_rules(stage: Stage) -> list[tuple[bool, str]]:
    """(wrong, sentence) pairs, as in bigdiff.config.rules."""
    speed = stage.speed
    return [
        (
            stage.model.autoencoder is not None and speed != Speed(),
            "speed has no effect with model.autoencoder: its switches are the UNet's",
        ),
        (
            speed.channels_last and not stage.engine.channels_last,
            "speed.channels_last keeps what engine.channels_last=false does not begin: set both, or none",
        ),
        *(
            (
                stage.engine.zero_stage == 3 and getattr(speed, name) != getattr(Speed(), name),
                f"speed.{name}={getattr(speed, name)} needs whole weights, which engine.zero_stage=3 gathers layer by "
                f"layer: take stage 1 or 2",
            )
            for name in ("compile", "norm", "linear")
        ),
        (
            speed.norm == "fused" and not speed.channels_last,
            "speed.norm=fused is computed in channels_last: set speed.channels_last=true",
        ),
        *(
            (
                getattr(speed, name) == "fused" and speed.compile != "none",
                f"speed.{name}=fused and speed.compile={speed.compile} fuse the same operations: set one of them",
            )
            for name in ("norm", "transformer")
        ),
        (
            speed.transformer == "fused" and stage.model.unet.cross_attention_dim == 0,
            "speed.transformer=fused has no effect on a UNet without text, which has no transformer blocks",
        ),
        (
            speed.cuda_graphs and speed.compile == "none",
            "speed.cuda_graphs replays what speed.compile has compiled: set speed.compile, too",
        ),
        (
            speed.cuda_graphs and stage.engine.gradient_checkpointing is not False,
            "speed.cuda_graphs and engine.gradient_checkpointing, which computes forward passes within the backward "
            "pass, do not go together: set one of them",
        ),
        *_text_rules(stage),
    ]


def _text_rules(stage: Stage) -> list[tuple[bool, str]]:
    text, how = stage.model.text, stage.speed.text_encoder
    asked = how != Speed().text_encoder
    return [
        (asked and text is None, f"speed.text_encoder={how} has no effect without model.text"),
        (
            asked and text is not None and text.train,
            f"speed.text_encoder={how} is of a frozen text encoder, and model.text.train=true trains it: leave it out",
        ),
        (
            how == "all" and stage.text_dropout == 0,
            "speed.text_encoder=all has no effect with text_dropout=0, which keeps all captions: leave it out",
        ),
    ]


def recovery_rules(stage: Stage) -> list[tuple[bool, str]]:
    """(wrong, sentence) pairs, as in bigdiff.config.rules."""
    rules = stage.recovery
    return [
        (
            rules.nonfinite_in_a_row <= 0,
            f"recovery.nonfinite_in_a_row={rules.nonfinite_in_a_row} must be positive",
        ),
        (
            rules.spike != 0 and rules.spike < 6,
            f"recovery.spike={rules.spike:g} would take ordinary steps for spikes: take 6 or more, or 0 for none",
        ),
        (
            rules.window < 20,
            f"recovery.window={rules.window} is too short to know what is usual: take at least 20 steps",
        ),
        (
            rules.spike == 0 and rules.window != Recovery().window,
            "recovery.window has no effect with recovery.spike=0",
        ),
        (not 0 <= rules.budget < 1, f"recovery.budget={rules.budget:g} must lie in [0, 1)"),
    ]


def in_bf16(stage: Stage, gpu: bool) -> bool:
    """Whether the network computes in bf16 over fp32 masters."""
    return gpu if stage.engine.precision == "auto" else stage.engine.precision == "bf16"


def bucket_of(stage: Stage, elements: int) -> int:
    """Elements of a bucket: no more than there are trained ones, as DeepSpeed allots it anew at every step."""
    return min(stage.engine.bucket_elements, elements + elements % 2)


def sharing(stage: Stage, processes: int) -> int:
    """Of so many processes, how many neighbours share one optimizer state under `engine.sharding: overlapped`.

    Raises:
        UsageError: when groups of `engine.shard_ranks` leave some over.
    """
    size = min(stage.engine.shard_ranks or processes, processes)
    if processes % size:
        raise UsageError(
            f"stage {stage.name}: {processes} processes are no groups of engine.shard_ranks={size}: take a divisor, "
            f"such as the processes of a node, or 0 for one group"
        )
    return size


def passes(stage: Stage, processes: int, gpu: bool) -> int:
    """Forward passes per optimizer step and process, all of whose gradients are added up in fp32.

    Raises:
        UsageError: when the batch does not divide over the processes, or DeepSpeed's stage 0 or 1 would add up in bf16:
            each sum loses what is below 1/256 of it, and with many passes it ceases to grow. Or CUDA graphs would
            overwrite it.
    """
    steps = accumulation(stage, processes)
    if stage.engine.sharding == "overlapped":
        return steps
    if steps > 1 and stage.engine.zero_stage < 2 and in_bf16(stage, gpu):
        raise UsageError(
            f"stage {stage.name}: engine.zero_stage={stage.engine.zero_stage} would add up the gradients of {steps} "
            f"passes in bf16 (batch.total={stage.batch.total} over {processes} processes of "
            f"batch.micro={stage.batch.micro}): use engine.zero_stage=2, which adds them up in fp32"
        )
    if steps > 1 and stage.engine.zero_stage < 2 and stage.speed.cuda_graphs:
        raise UsageError(
            f"stage {stage.name}: engine.zero_stage={stage.engine.zero_stage} keeps the gradients of a pass where "
            f"speed.cuda_graphs writes the next one's, and there are {steps} passes (batch.total={stage.batch.total} "
            f"over {processes} processes of batch.micro={stage.batch.micro}): use engine.zero_stage=2"
        )
    return steps
