"""Small true networks, as fixtures that the conftest.py of several folders import."""

import json
from pathlib import Path

import pytest

TINY_CLIP = {
    "embed_dim": 768,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Source of a CLIP with embeddings as wide as L/14's, which knows red, green and blue circles and no more.

    Its weights are random but for the last matrix, which takes the three captions to their pictures' embeddings.
    """
    import open_clip
    import torch
    from open_clip.model import CLIP
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors.torch import save_file

    from bigdiff.models.probes import disc

    torch.manual_seed(0)
    network = CLIP(**TINY_CLIP).eval()
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    colours = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}
    captions = open_clip.SimpleTokenizer()([f"a {name} circle" for name in colours])
    with torch.no_grad():
        images = network.encode_image(torch.stack([transform(disc(one)) for one in colours.values()]), normalize=True)
        network.text_projection = None
        pooled = network.encode_text(captions)
    network.text_projection = torch.nn.Parameter(torch.linalg.pinv(pooled) @ images)
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}}))
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, folder / "model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of Inception v3 in torchvision's names, which FID's published file has too; random, as large as those."""
    import torch
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), file)
    return file
