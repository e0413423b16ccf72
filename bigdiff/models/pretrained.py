"""A UNet's weights as others published them: a folder in diffusers' layout, or one file in the original code's.

They are held against the stage's network tensor by tensor before any is taken. A .ckpt is unpickled with
`weights_only=True`, which makes tensors and runs nothing.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import UNet, single_file
from bigdiff.models import original
from bigdiff.models.components import AnyUNet, fetch
from bigdiff.models.original import Place, Places
from bigdiff.models.original_settings import attends, unet_parameters

_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_OF_NO_WEIGHT: Final = ("sample_size",)  # settings that may differ: the network is the same on any size


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """Weights and where they came from."""

    file: Path
    tensors: dict[str, Tensor]  # all of the network's, by its own names, as they were stored


def load_unet(source: str, config: UNet, unet: AnyUNet) -> Pretrained:
    """The weights at `source` for `unet`, which was built of `config` and is not changed.

    `source` is a .safetensors or .ckpt file in the original layout, or a folder in diffusers' layout or a hub id as for
    `load_vae`.

    Raises:
        UsageError: when it is not there, cannot be read, or is of another network.
    """
    own = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    if single_file(source):
        file = Path(source).expanduser()
        if not file.is_file():
            raise UsageError(f"UNet {source}: there is no such file")
        unet_parameters(config)  # or its tensors would fit and compute something else
        places = original.unet_places(own, attends(config), config.layers_per_block)
        return Pretrained(file=file, tensors=original.from_original(places, _read(file, places, original.UNET), own))
    folder = fetch(source, "UNet", (_CONFIG, _WEIGHTS))
    _fits(folder / _CONFIG, unet)
    places = {name: Place(name=name, shape=shape) for name, shape in own.items()}
    return Pretrained(file=folder / _WEIGHTS, tensors=_read(folder / _WEIGHTS, places, ""))


def _fits(file: Path, unet: AnyUNet) -> None:
    """Raise a UsageError when the configuration in `file` makes another network than `unet`."""
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        kind = found["_class_name"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{file} is no configuration of a diffusers UNet ({error})") from error
    if kind != type(unet).__name__:
        raise UsageError(f"{file} is of a {kind}, this stage's UNet is a {type(unet).__name__}")
    usual = {name: one.default for name, one in inspect.signature(type(unet).__init__).parameters.items()}
    for key, default in usual.items():
        if key in unet.config and key not in _OF_NO_WEIGHT:
            theirs, ours = _plain(found.get(key, default)), _plain(unet.config[key])
            if theirs != ours and (theirs or ours):  # null, false and 0 are one in old configurations
                raise UsageError(f"{file} has {key}={theirs}, this stage's UNet {ours}: set model.unet as it is there")


def _plain(value: Any) -> Any:  # noqa: ANN401 (whatever a configuration holds)
    return list(value) if isinstance(value, tuple) else value


def _read(file: Path, places: Places, prefix: str) -> dict[str, Tensor]:
    """The tensors at `places`, by the file's names, of which there are no others that begin with `prefix`.

    Raises:
        UsageError: naming the first one that is missing, unexpected, misshapen or no weight, and their number.
    """
    wanted = {place.name: place.shape for place in places.values()}
    if file.suffix == ".ckpt":
        every = _unpickled(file)
        stored = {name: one for name, one in every.items() if isinstance(one, Tensor)}
        _agree(file, wanted, {name: tuple(one.shape) for name, one in stored.items() if name.startswith(prefix)})
        tensors = {name: stored[name] for name in wanted}
    else:
        try:
            with safe_open(file, framework="pt") as opened:
                names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
                _agree(file, wanted, {name: tuple(opened.get_slice(name).get_shape()) for name in names})
                tensors = {name: opened.get_tensor(name) for name in wanted}
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{file} cannot be read as safetensors ({error})") from error
    whole = [name for name, one in tensors.items() if not one.is_floating_point()]
    if whole:
        raise UsageError(
            f"{file}: {len(whole)} tensors are whole numbers, first {whole[0]}: quantised weights are no use"
        )
    return tensors


def _agree(file: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [f"{name} is not in it" for name in wanted if name not in found]
    wrong += [f"{name} is unexpected" for name in found if name not in wanted]
    wrong += [
        f"{name} has the shape {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if wrong:
        raise UsageError(
            f"{file} is not of this stage's UNet, which has {len(wanted)} tensors: {len(wrong)} differ, first "
            f"{wrong[0]}; set model.unet as it is there, or take another file"
        )


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise UsageError(
            f"{file} is no checkpoint, or holds more than tensors, which could run code when it is opened: save its "
            f"tensors as .safetensors where you trust it"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({' '.join(str(error).split())[:200]})") from error
    found = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise UsageError(f"{file} holds no dictionary of tensors")
    return found
