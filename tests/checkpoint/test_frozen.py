import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bigdiff.checkpoint import frozen
from bigdiff.config.errors import UsageError


def weights() -> dict[str, torch.Tensor]:
    """As a network has them: a parameter, one that is not contiguous, a scalar and an empty one."""
    random = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    return {
        "unet.b.weight": torch.nn.Parameter(random.clone()),
        "unet.a.weight": random.t()[1:3],
        "unet.scale": torch.tensor(0.25),
        "text_encoder.none": torch.zeros(0, 3),
    }


def refusal(run: Path, recorded: str) -> str:
    with pytest.raises(UsageError) as caught:
        frozen.read(run, recorded)
    return str(caught.value)


def test_weights_come_back_bit_for_bit_under_the_sha256_of_their_file(tmp_path: Path) -> None:
    run, given = tmp_path / "runs" / "toy", weights()
    recorded = frozen.write(run, given)
    assert recorded == hashlib.sha256((run / frozen.NAME).read_bytes()).hexdigest() == frozen.fingerprint(run)
    assert [path.name for path in run.iterdir()] == [frozen.NAME]  # nothing temporary is left
    for found in (frozen.read(run, recorded), load_file(run / frozen.NAME)):
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], one) and not found[name].requires_grad for name, one in given.items())


def test_the_same_weights_in_any_order_have_the_same_sha256_and_others_another(tmp_path: Path) -> None:
    given = weights()
    recorded = frozen.write(tmp_path, given)
    assert frozen.write(tmp_path / "other", dict(reversed(given.items()))) == recorded
    assert frozen.write(tmp_path / "other", {**given, "unet.scale": torch.tensor(0.5)}) != recorded


def test_no_weights_are_no_file_and_remove_that_of_an_earlier_start(tmp_path: Path) -> None:
    run = tmp_path / "toy"
    assert (frozen.write(run, {}), frozen.fingerprint(run), frozen.read(run, "")) == ("", "", {})
    assert not run.exists()
    frozen.write(run, weights())
    assert frozen.write(run, {}) == ""
    assert list(run.iterdir()) == []


def test_a_file_that_is_not_the_recorded_one_is_refused(tmp_path: Path) -> None:
    recorded = frozen.write(tmp_path, weights())
    file = tmp_path / frozen.NAME
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "is not the one of its checkpoints (its sha256 differs): bring it back" in refusal(tmp_path, recorded)
    file.unlink()
    assert refusal(tmp_path, recorded) == f"{file} is absent: bring it back, or train into another run folder"


def test_a_recorded_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / frozen.NAME).write_bytes(b"no header")
    assert f"{tmp_path / frozen.NAME} cannot be read (" in refusal(tmp_path, frozen.fingerprint(tmp_path))
