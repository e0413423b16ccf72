import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import UNet
from bigdiff.models import components

TINY = UNet(
    latent_channels=2,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=2,
    norm_num_groups=4,
)


def seeded(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return components.build_unet(TINY, 4)


def test_sd_v1_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        unet = components.build_unet(UNet(), 64)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert unet.config.sample_size == 64


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (components.weights_sha256(seeded(seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_a_configuration_that_diffusers_refuses_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"model\.unet"):
        components.build_unet(replace(TINY, down_block_types=("NoSuchBlock", "DownBlock2D")), 4)


def test_the_checksum_does_not_depend_on_the_files(toy: Path, tmp_path: Path) -> None:
    vae = components.load_vae(str(toy / "vae"))
    vae.save_pretrained(tmp_path / "again")
    assert components.weights_sha256(components.load_vae(str(tmp_path / "again"))) == components.weights_sha256(vae)
    turned = nn.Linear(6, 4, bias=False)
    same = nn.Linear(6, 4, bias=False)
    same.weight = nn.Parameter(turned.weight.t().contiguous().t())  # other strides, equal values
    assert components.weights_sha256(turned) == components.weights_sha256(same)


def test_the_checksum_sees_names_types_shapes_and_bytes() -> None:
    plain = nn.Linear(6, 4)

    def copy() -> nn.Linear:
        made = nn.Linear(6, 4)
        made.load_state_dict(plain.state_dict())
        return made

    weight, bias, shape, kind = copy(), copy(), copy(), copy().half()
    with torch.no_grad():
        weight.weight[3, 5] += 1e-3
        bias.bias[3] += 1e-3
    shape.weight = nn.Parameter(plain.weight.detach().reshape(4, 3, 2))
    renamed = nn.ModuleDict({"part": copy()})
    sums = {components.weights_sha256(one) for one in (plain, weight, bias, shape, kind, renamed)}
    assert len(sums) == 6
    assert components.weights_sha256(copy()) in sums
    assert len(components.weights_sha256(copy().to(torch.bfloat16))) == 64


def test_the_checksum_does_not_depend_on_the_order_of_registration() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    one, other = nn.ModuleDict({"a": first, "b": second}), nn.ModuleDict({"b": second, "a": first})
    assert components.weights_sha256(one) == components.weights_sha256(other)


def test_components_are_frozen_float32_and_in_evaluation_mode(toy: Path, tmp_path: Path) -> None:
    AutoencoderKL.from_pretrained(toy / "vae", low_cpu_mem_usage=False).half().save_pretrained(tmp_path / "half")
    loaded = [components.load_vae(str(tmp_path / "half")), components.load_text_encoder(str(toy / "text_encoder"))]
    for module in loaded:
        assert not module.training
        assert {(one.dtype, one.requires_grad) for one in module.parameters()} == {(torch.float32, False)}


def test_an_autoencoder_with_the_attentions_old_names_is_the_same(toy: Path, tmp_path: Path) -> None:
    """As SD v1-1 to v1-5 were published in diffusers' layout."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    stored = load_file(toy / "vae" / "diffusion_pytorch_model.safetensors")
    for new, name in old.items():
        for key in [key for key in stored if f"attentions.0.{new}." in key]:
            stored[key.replace(new, name)] = stored.pop(key)
    assert sum(".query." in key for key in stored) == 4
    save_file(stored, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((toy / "vae" / "config.json").read_bytes())
    vaes = [components.load_vae(str(folder)) for folder in (tmp_path, toy / "vae")]
    assert components.weights_sha256(vaes[0]) == components.weights_sha256(vaes[1])


def test_a_subfolder_can_be_named(toy: Path) -> None:
    assert components.weights_sha256(components.load_vae(f"{toy}:vae")) == components.weights_sha256(
        components.load_vae(str(toy / "vae"))
    )


@pytest.mark.parametrize("source", ["runs/no/such/folder", "/no/such/folder", "runs/none", "plain"])
def test_an_absent_folder_is_named_at_once(source: str) -> None:
    for load in (components.load_vae, components.load_text_encoder, lambda name: components.load_tokenizer(name, 7)):
        with pytest.raises(UsageError, match=f"{source}.*no such folder"):
            load(source)


def test_a_hub_id_without_network_fails_fast_and_says_what_to_do() -> None:
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"CompVis/no-such-model:vae.*network"):
        components.load_vae("CompVis/no-such-model:vae")
    assert time.monotonic() - began < 5


def test_weights_in_a_pickle_are_not_read(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((toy / "vae" / "config.json").read_bytes())
    torch.save(components.load_vae(str(toy / "vae")).state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no diffusion_pytorch_model\.safetensors"):
        components.load_vae(str(tmp_path))


def test_damaged_files_are_usage_errors(toy: Path, tmp_path: Path) -> None:
    for part, name in (("vae", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_bytes((toy / part / "config.json").read_bytes())
        (tmp_path / part / name).write_bytes((toy / part / name).read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"autoencoder .* cannot be loaded"):
        components.load_vae(str(tmp_path / "vae"))
    with pytest.raises(UsageError, match=r"text encoder .* cannot be loaded"):
        components.load_text_encoder(str(tmp_path / "text_encoder"))


def test_a_tokenizer_without_its_words_is_refused(toy: Path, tmp_path: Path) -> None:
    settings = (toy / "tokenizer" / "tokenizer_config.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_bytes(settings)
    with pytest.raises(UsageError, match=r"vocab\.json"):
        components.load_tokenizer(str(tmp_path), 12)


def test_token_ids_are_padded_and_cut(toy: Path) -> None:
    tokenizer = components.load_tokenizer(str(toy / "tokenizer"), 6)
    ids = components.token_ids(tokenizer, ["", "a red circle", "one two three four five six seven"])
    assert ids.dtype == torch.int64
    assert ids.tolist()[0] == [49406] + [49407] * 5
    assert ids[1].tolist()[4:] == [49407, 49407]
    assert ids[2, 0] == 49406
    assert ids[2, -1] == 49407  # a caption that is cut still ends
    assert components.token_ids(tokenizer, []).shape == (0, 6)


def test_the_tokenizers_checksum_is_of_its_words(toy: Path, tmp_path: Path) -> None:
    long, short = (components.load_tokenizer(str(toy / "tokenizer"), length) for length in (77, 12))
    assert components.tokenizer_sha256(long) == components.tokenizer_sha256(short)  # the length is a line of its own
    long.save_pretrained(tmp_path)  # as tokenizer.json
    again = components.load_tokenizer(str(tmp_path), 77)
    assert components.tokenizer_sha256(again) == components.tokenizer_sha256(long)
    again.add_tokens(["newword"])
    assert components.tokenizer_sha256(again) != components.tokenizer_sha256(long)
