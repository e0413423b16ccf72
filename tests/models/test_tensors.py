import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bigdiff.config.errors import UsageError
from bigdiff.models import tensors

STATE = {"weight": torch.arange(3.0)[None], "bias": torch.ones(1)}


class Trap:
    """What a hostile file does when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def saved(folder: Path, form: str) -> Path:
    file = folder / f"weights{'.safetensors' if form == 'safetensors' else '.npz' if form == 'npz' else '.pth'}"
    if form == "safetensors":
        save_file(STATE, file)
    elif form == "npz":
        np.savez(file, **{name: value.numpy() for name, value in STATE.items()})
    elif form == "wrapped":
        torch.save({"state_dict": STATE, "epoch": 3}, file)
    elif form == "parallel":
        torch.save({"weights": {f"module.{name}": value for name, value in STATE.items()}}, file)
    else:
        torch.save(STATE, file)
    return file


@pytest.mark.parametrize("form", ["safetensors", "npz", "torch", "wrapped", "parallel"])
def test_every_form_of_file_gives_the_same_tensors(tmp_path: Path, form: str) -> None:
    found = tensors.read(str(saved(tmp_path, form)), "x")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"weight": Trap(mark)}))
    torch.save({"weight": Trap(mark)}, tmp_path / "torch.pth")
    np.savez(tmp_path / "array.npz", weight=np.array([Trap(mark)], dtype=object))
    torch.jit.script(nn.Linear(3, 1)).save(str(tmp_path / "scripted.pt"))
    for name in ("plain.pth", "torch.pth", "array.npz", "scripted.pt"):
        with pytest.raises(UsageError, match=f"{name} cannot be read without running code"):
            tensors.read(str(tmp_path / name), "x")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
def test_a_file_that_is_none_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    for suffix in (".pth", ".npz", ".safetensors"):
        file = tmp_path / f"broken{suffix}"
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"^x: weights file .* cannot be read"):
            tensors.read(str(file), "x")
    with pytest.raises(UsageError, match="there is no weights file"):
        tensors.read(str(tmp_path / "absent.pth"), "x")


@pytest.mark.parametrize("content", [{}, [1], {"weight": 3}, {"state_dict": {"a": "b"}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UsageError, match="no table of named tensors"):
        tensors.read(str(tmp_path / "odd.pth"), "x")


def test_the_network_takes_them_and_is_frozen() -> None:
    network = nn.Linear(3, 1)
    tensors.fit(network, STATE, "x", "f")
    assert torch.equal(network.weight, STATE["weight"])
    assert not network.training and not network.weight.requires_grad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bias": None}, "has no bias"),
        ({"weight": torch.ones(1, 4)}, r"weight of shape \[1, 4\], not \[1, 3\]"),
        ({"scale": torch.ones(1)}, "has scale, too"),
        ({"bias": torch.tensor([float("nan")])}, "bias with values that are not finite"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, torch.Tensor | None], message: str) -> None:
    state = {name: value for name, value in {**STATE, **changed}.items() if value is not None}
    with pytest.raises(UsageError, match=f"weights file f has {message}|weights file f {message}"):
        tensors.fit(nn.Linear(3, 1), state, "x", "f")
