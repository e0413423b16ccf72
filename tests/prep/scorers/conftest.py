"""Where the real weights lie, which are no part of the project."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

WEIGHTS = Path(os.environ.get("BIGDIFF_TEST_WEIGHTS") or Path(__file__).resolve().parents[4] / "shared" / "weights")
PUBLISHED = {
    "aesthetic_v1": "aesthetic_v1/sa_0_4_vit_l_14_linear.pth",
    "aesthetic_v2": "sac+logos+ava1-l14-linearMSE.pth",
    "nsfw": "clip_autokeras_binary_nsfw.converted.npz",
}


@pytest.fixture
def published() -> Callable[[str], Path]:
    """The file with the published weights of a kind, or another file beside them."""

    def find(kind: str) -> Path:
        file = WEIGHTS / PUBLISHED.get(kind, kind)
        if not file.exists():
            pytest.skip(f"{file} is absent: real weights are not part of the project (BIGDIFF_TEST_WEIGHTS names them)")
        return file

    return find
