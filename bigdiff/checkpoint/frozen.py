"""Weights that a run does not train but that belong to what it makes: in the run folder, once, for all checkpoints.

They are the parameters that model.frozen names, and a text encoder that the run before had trained. A checkpoint's
identity has the sha256 of the file.
"""

from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bigdiff.config.errors import UsageError
from bigdiff.runtime.files import replacing, sha256

NAME: Final = "frozen.safetensors"


def write(run: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Store `tensors` for the run in `run`; gives the sha256 of the file, "" when there are none."""
    if not tensors:
        (run / NAME).unlink(missing_ok=True)  # of an earlier start that ended before its first checkpoint
        return ""
    run.mkdir(parents=True, exist_ok=True)
    with replacing(run / NAME) as temporary:
        save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, temporary)
    return fingerprint(run)


def fingerprint(run: Path) -> str:
    """Sha256 of a run's file; "" when it has none."""
    return sha256(run / NAME) if (run / NAME).is_file() else ""


def other(run: Path) -> UsageError:
    """What to say when a run's file is not the recorded one."""
    state = "is not the one of its checkpoints (its sha256 differs)" if (run / NAME).is_file() else "is absent"
    return UsageError(f"{run / NAME} {state}: bring it back, or train into another run folder")


def unreadable(run: Path, error: Exception) -> UsageError:
    """What to say when it is no such file, or the disk does not give it."""
    return UsageError(f"{run / NAME} cannot be read ({error}): bring it back, or train into another run folder")


def read(run: Path, recorded: str) -> dict[str, torch.Tensor]:
    """The frozen weights of a run whose checkpoint records this sha256, by name, fp32 on the CPU.

    Raises:
        UsageError: when the file is absent or another one.
    """
    if not recorded:
        return {}
    if fingerprint(run) != recorded:
        raise other(run)
    try:
        tensors: dict[str, torch.Tensor] = load_file(run / NAME)
    except (SafetensorError, OSError) as error:
        raise unreadable(run, error) from error
    return tensors
