from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.evaluation import Judges
from bigdiff.evaluate.clip_score import cosines
from bigdiff.evaluate.networks import CMMD, COSINE, INCEPTION, loaded
from bigdiff.models.probes import disc

SHOWN = [disc((255, 0, 0)), disc((0, 0, 255)), disc((9, 9, 9))]
SAID = ["a red circle", "a blue circle", "a red circle"]


@pytest.fixture(scope="module")
def judges(random_inception: Path, tiny_clip: str) -> Judges:
    return Judges(inception=str(random_inception), clip=tiny_clip, cmmd_clip=tiny_clip)


def test_each_network_sees_the_pictures(judges: Judges) -> None:
    seen = loaded(judges)
    found = seen.of(SHOWN, SAID)
    assert found.keys() == {INCEPTION, CMMD, COSINE}
    assert found[INCEPTION].shape == (3, 2048) and found[CMMD].shape == (3, 768) and found[COSINE].shape == (3,)
    np.testing.assert_allclose(found[CMMD].norm(dim=1), 1, atol=1e-5)
    assert seen.clip is not None
    texts = torch.from_numpy(seen.clip.text_features(SAID))
    np.testing.assert_allclose(found[COSINE], cosines(found[CMMD], texts), atol=1e-6)  # the two are one CLIP here
    assert found[COSINE][0] > found[COSINE][2]
    assert seen.of(SHOWN, []).keys() == {INCEPTION, CMMD}


def test_a_prefix_stands_before_each_caption(tiny_clip: str) -> None:
    plain, prefixed = (loaded(Judges(clip=tiny_clip, clip_prefix=prefix)) for prefix in ("", "a red "))
    found = prefixed.of(SHOWN[:1], ["circle"])[COSINE]
    torch.testing.assert_close(found, plain.of(SHOWN[:1], ["a red circle"])[COSINE], rtol=0, atol=0)
    assert prefixed.fingerprint[COSINE].endswith("prefix 'a red '")
    assert prefixed.fingerprint != plain.fingerprint


def test_fingerprints_tell_networks_and_preprocessing_apart(judges: Judges) -> None:
    told = loaded(judges).fingerprint
    assert told.keys() == {INCEPTION, CMMD, COSINE}
    legacy = Judges(inception=judges.inception, resize="legacy")
    assert loaded(legacy).fingerprint == {INCEPTION: told[INCEPTION].replace("clean", "legacy")}


def test_absent_weights_say_where_they_are(tmp_path: Path) -> None:
    absent = str(tmp_path / "clip.safetensors")
    for judges, flag in ((Judges(clip=absent), "--clip"), (Judges(cmmd_clip=absent), "--cmmd-clip")):
        with pytest.raises(
            UsageError, match=rf"^{flag}: there is no weights file .*clip\.safetensors; download open_c"
        ):
            loaded(judges)
    with pytest.raises(UsageError, match=r"^--inception: there is no weights file .*; download pt_inception"):
        loaded(Judges(inception=absent))


def test_a_clip_that_knows_no_colours_is_refused(tiny_clip: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(tiny_clip.removeprefix("local-dir:"))
    state = load_file(folder / "model.safetensors")
    state["text_projection"] = state["text_projection"].flip(1).contiguous()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(UsageError, match=r"^--cmmd-clip does not give its golden values \(red, green and blue discs"):
        loaded(Judges(cmmd_clip=f"local-dir:{tmp_path}"))


def test_features_that_are_not_finite_are_an_error(tiny_clip: str) -> None:
    seen = loaded(Judges(cmmd_clip=tiny_clip, cmmd_model="ViT-L-14-336-quickgelu"))
    assert seen.cmmd is not None
    spoilt = next(seen.cmmd.network.visual.parameters())
    right = spoilt.clone()
    spoilt.fill_(float("nan"))
    try:
        with pytest.raises(RunError, match="cmmd: a feature is not finite"):
            seen.of([Image.new("RGB", (8, 8))], [])
    finally:
        spoilt.copy_(right)  # other tests have the same network
