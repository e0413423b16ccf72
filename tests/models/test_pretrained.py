import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import UNet
from bigdiff.models import components, original
from bigdiff.models.original_settings import attends
from bigdiff.models.pretrained import load_unet

SMALL = UNet(
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=2,
)


def seeded(seed: int, config: UNet = SMALL) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return components.build_unet(config, 8)


def single(unet: nn.Module) -> dict[str, Tensor]:
    """A published file's content: the UNet, and much else."""
    own = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    there = original.to_original(original.unet_places(own, attends(SMALL), 1), unet.state_dict())
    return {**there, "betas": torch.zeros(3), "model_ema.decay": torch.zeros(()), "first_stage_model.x": torch.zeros(1)}


def same(found: dict[str, Tensor], unet: nn.Module) -> bool:
    wanted = unet.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], one) for name, one in wanted.items())


@pytest.mark.parametrize("end", ["safetensors", "ckpt", "folder"])
def test_each_form_gives_the_same_weights(end: str, tmp_path: Path) -> None:
    theirs, ours = seeded(1).half(), seeded(2)
    source = tmp_path / f"unet.{end}"
    if end == "folder":
        theirs.save_pretrained(source)
    elif end == "ckpt":
        torch.save({"state_dict": single(theirs), "global_step": 470000}, source)
    else:
        safetensors.torch.save_file(single(theirs), source)
    found = load_unet(str(source), SMALL, ours)
    assert same(found.tensors, theirs)
    assert found.file.is_file()
    assert not same(dict(ours.state_dict()), theirs.float())  # it is the caller who puts them in


def test_a_folder_in_a_folder_and_one_of_another_size_are_taken(tmp_path: Path) -> None:
    theirs = seeded(1)
    theirs.register_to_config(sample_size=96)
    theirs.save_pretrained(tmp_path / "unet")
    assert same(load_unet(f"{tmp_path}:unet", SMALL, seeded(2)).tensors, theirs)


def test_a_published_configuration_with_few_keys_fits(tmp_path: Path) -> None:
    """As diffusers 0.2 wrote them: what is not there is as usual, null is false, unknown keys are passed over."""
    theirs = seeded(1)
    theirs.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    few = {key: told[key] for key in components.unet_config(SMALL, 8)} | {"_class_name": "UNet2DConditionModel"}
    (tmp_path / "config.json").write_text(json.dumps({**few, "upcast_attention": None, "of_the_future": 3}))
    assert same(load_unet(str(tmp_path), SMALL, seeded(2)).tensors, theirs)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"norm_num_groups": 16}, "has norm_num_groups=16, this stage's UNet 32"),
        ({"attention_head_dim": 4}, "has attention_head_dim=4, this stage's UNet 2"),
        ({"freq_shift": 1}, "has freq_shift=1, this stage's UNet 0"),
        ({"_class_name": "UNet2DModel"}, "is of a UNet2DModel, this stage's UNet is a UNet2DConditionModel"),
    ],
)
def test_a_folder_whose_tensors_fit_and_that_computes_otherwise_is_refused(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    seeded(1).save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**told, **settings}))
    with pytest.raises(UsageError, match=sentence):
        load_unet(str(tmp_path), SMALL, seeded(2))


def test_tensors_that_differ_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    file, name = tmp_path / "unet.safetensors", "model.diffusion_model.out.2.weight"
    whole = single(seeded(1))
    total = len([one for one in whole if one.startswith(original.UNET)])
    cases = {
        "is not in it": {key: one for key, one in whole.items() if key != name},
        "is unexpected": {**whole, f"{original.UNET}label_emb.0.0.weight": torch.zeros(1)},
        r"has the shape \[3, 32, 3, 3\], not \[4, 32, 3, 3\]": {**whole, name: whole[name][:3].clone()},
    }
    for sentence, content in cases.items():
        safetensors.torch.save_file(content, file)
        with pytest.raises(
            UsageError, match=rf"has {total} tensors: 1 differ, first model\.diffusion_model\..* {sentence}"
        ):
            load_unet(str(file), SMALL, seeded(2))
    safetensors.torch.save_file({"conv_in.weight": torch.zeros(1)}, file)
    with pytest.raises(UsageError, match=f"has {total} tensors: {total} differ"):
        load_unet(str(file), SMALL, seeded(2))
    safetensors.torch.save_file({**whole, name: whole[name].to(torch.int8)}, file)
    with pytest.raises(UsageError, match="1 tensors are whole numbers, first model"):
        load_unet(str(file), SMALL, seeded(2))


def test_another_network_is_refused_in_either_layout(tmp_path: Path) -> None:
    safetensors.torch.save_file(single(seeded(1)), tmp_path / "unet.safetensors")
    deeper = replace(SMALL, layers_per_block=2)
    with pytest.raises(UsageError, match=r"tensors: .* differ, first"):
        load_unet(str(tmp_path / "unet.safetensors"), deeper, seeded(2, deeper))
    coarse = replace(SMALL, norm_num_groups=16)  # every tensor fits
    with pytest.raises(UsageError, match="norm_num_groups=16, and the original code has 32"):
        load_unet(str(tmp_path / "unet.safetensors"), coarse, seeded(2, coarse))


class Harm:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("harm",))


def test_a_pickle_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": single(seeded(1)), "callbacks": Harm()}, tmp_path / "unet.ckpt")
    with pytest.raises(UsageError, match=r"unet\.ckpt .* holds more than tensors"):
        load_unet(str(tmp_path / "unet.ckpt"), SMALL, seeded(2))
    assert "harm" not in capsys.readouterr().out


@pytest.mark.parametrize("end", ["safetensors", "ckpt"])
def test_files_that_are_not_there_or_not_whole_are_usage_errors(end: str, tmp_path: Path) -> None:
    file = tmp_path / f"unet.{end}"
    with pytest.raises(UsageError, match="there is no such file"):
        load_unet(str(file), SMALL, seeded(2))
    file.write_bytes(b"\x00" * 100)
    with pytest.raises(UsageError, match=r"cannot be read|is no checkpoint"):
        load_unet(str(file), SMALL, seeded(2))
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UsageError, match="holds no dictionary of tensors"):
        load_unet(str(tmp_path / "list.ckpt"), SMALL, seeded(2))
    with pytest.raises(UsageError, match=r"no such folder"):
        load_unet(str(tmp_path / "none"), SMALL, seeded(2))
    (tmp_path / "config.json").write_text("[]")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError, match="no configuration of a diffusers UNet"):
        load_unet(str(tmp_path), SMALL, seeded(2))
