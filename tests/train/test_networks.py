from pathlib import Path

import pytest
import torch

from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.data.latents import LatentSet
from bigdiff.models import components
from bigdiff.train import networks


def test_the_set_of_the_stage_is_accepted_and_others_are_refused_line_by_line(toy: Path) -> None:
    stage = load_stage(str(toy / "stage.yaml"))
    assert stage.model.vae and stage.model.text
    vae = components.load_vae(stage.model.vae.source)
    tokenizer = components.load_tokenizer(stage.model.text.tokenizer, stage.model.text.max_length)
    with LatentSet(stage.data.latents) as latents:
        needed = networks.needed_contract(stage, vae, tokenizer)
        networks.refuse_other_latents(latents, needed)
        with torch.no_grad():
            next(vae.parameters()).add_(1)
        shorter = components.load_tokenizer(stage.model.text.tokenizer, 8)
        with pytest.raises(UsageError) as caught:
            networks.refuse_other_latents(latents, networks.needed_contract(stage, vae, shorter))
    sentence = str(caught.value)
    assert "vae_sha256" in sentence
    assert "text_length is 12 in the set, 8 is needed" in sentence
    assert "encode_latents" in sentence
    assert "resolution" not in sentence


@pytest.mark.parametrize(
    ("crop", "stored", "needed"),
    [("center", None, {}), ("center", 5, {}), ("random", None, {"crops": 3}), ("random", 5, {"crops": 5})],
)
def test_a_stage_that_draws_its_crops_needs_some_and_another_takes_any(
    toy: Path, crop: str, stored: int | None, needed: dict[str, int]
) -> None:
    stage = load_stage(str(toy / "stage.yaml"), [f"data.crop={crop}"])
    with LatentSet(stage.data.latents) as latents:
        if stored is not None:
            latents.manifest.contract["crops"] = stored
        assert networks.needed_form(stage, latents, {}) == needed
        if crop == "center" or stored:
            networks.refuse_other_latents(latents, needed)
            return
        with pytest.raises(UsageError, match=r"crops is 'absent' in the set, 3 is needed.*encode_latents.py --crops 3"):
            networks.refuse_other_latents(latents, needed)
