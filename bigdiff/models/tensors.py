"""Weights from files that a person names: tensors alone, never pickled objects, and every name and shape checked."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, TypeAlias
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bigdiff.config.errors import UsageError

State: TypeAlias = dict[str, Tensor]
_UNREADABLE: Final = (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError)
_WRAPPERS: Final = ("state_dict", "weights")  # what training scripts put around a state


def read(file: str, who: str, mend: str = "download it and name where it is") -> State:
    """The tensors of a .safetensors, .npz or torch file, on the CPU; `who` wants them, in the user's words.

    Raises:
        UsageError: when it is not there, cannot be read, or holds anything but tensors.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"{who}: there is no weights file {file}; {mend}")
    try:
        state = _content(path)
    except (*_UNREADABLE, BadZipFile) as error:
        raise UsageError(
            f"{who}: weights file {file} cannot be read without running code from it "
            f"({_first_line(error)}): give a .safetensors file, or torch's with plain tensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{who}: weights file {file} is no table of named tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def fit(network: nn.Module, state: State, who: str, file: str) -> None:
    """Put `state` into `network`, which is then frozen and in evaluation mode.

    Raises:
        UsageError: naming the first tensor that is absent, unknown, of another shape, or not finite.
    """
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise UsageError(f"{who}: weights file {file} has no {name}: it is of another model")
        if state[name].shape != tensor.shape:
            raise UsageError(
                f"{who}: weights file {file} has {name} of shape {list(state[name].shape)}, not "
                f"{list(tensor.shape)}: it is of another model"
            )
        if state[name].is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            raise UsageError(f"{who}: weights file {file} has {name} with values that are not finite")
    unknown = sorted(state.keys() - wanted.keys())
    if unknown:
        raise UsageError(f"{who}: weights file {file} has {unknown[0]}, too: it is of another model")
    network.load_state_dict(state)
    network.requires_grad_(False).eval()


def _content(path: Path) -> Any:  # noqa: ANN401 (whatever is in the file)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return torch.load(path, map_location="cpu", weights_only=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
