"""Frozen parts and a trained text encoder through resume, ZeRO-3, hand-over, preview and export, with real runs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from bigdiff.checkpoint import frozen, layout, reader
from bigdiff.checkpoint.weights import complete, names
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.evaluate.preview import Beside, Previewer
from bigdiff.export.diffusers import export
from bigdiff.models import components
from bigdiff.train import networks

Ranks = Callable[..., list[str]]
# all runs in one process: DeepSpeed takes far longer to come than the steps
TRAIN = """
import json, sys
from pathlib import Path
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.watchdog import Watchdog
from bigdiff.runtime.world import enter
from bigdiff.train import loop, setup
world = enter(60)
for options in json.loads(sys.argv[2]):
    try:
        stage = load_stage(sys.argv[1], options)
        with setup.building(stage, world, Stop(), Watchdog(world, Path(stage.runs), 60)) as run:
            loop.train(run)
    except UsageError as error:
        print("refused", error)
"""
PATTERNS = "model.frozen=[unet.down_blocks.*,text_encoder.*embedding*]"
TEXT = "model.text.train=true"
STILL = ["optim.lr=1e-12", "optim.warmup_steps=0", "optim.weight_decay=0", "steps=1"]  # stays where it begins


REFUSALS = [
    ["name=first", TEXT, "checkpoint.every=4", "model.frozen=[unet.down_blocks.*]", "steps=12"],
    ["name=fourth", "init_from=first", "init_ema=true", *STILL],
    ["name=fifth", "model.frozen=[unet.nothing.*]"],
    ["name=fifth", "model.frozen=[unet.*]"],
]


@pytest.fixture(scope="module")
def runs(run_ranks: Ranks, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of the runs, trained once, and what was refused."""
    folder = tmp_path_factory.mktemp("runs")
    first = [PATTERNS, TEXT, "checkpoint.every=4"]
    preview = ["preview.every=4", "preview.prompts=[a red thing]", "preview.steps=2"]
    jobs = [
        ["name=first", *first, *preview, "steps=4"],
        ["name=first", *first, *preview, "steps=8"],
        ["name=straight", *first, "steps=8"],
        ["name=scattered", *first, "steps=8", "engine.zero_stage=3"],
        ["name=second", "init_from=first", *STILL],
        ["name=third", "init_from=second", TEXT, "model.frozen=[unet.up_blocks.*]", *STILL],
        *REFUSALS,
    ]
    told = json.dumps([[f"runs={folder}", *options] for options in jobs])
    (output,) = run_ranks(TRAIN, 1, str(toy / "stage.yaml"), told)
    return folder, [line for line in output.splitlines() if line.startswith("refused")]


def newest(folder: Path, name: str) -> Path:
    return layout.saved(folder / name)[0]


def test_frozen_parts_are_stored_once_and_kept_out_of_the_checkpoint(runs: tuple[Path, list[str]], toy: Path) -> None:
    folder, _ = runs
    stage = load_stage(str(toy / "stage.yaml"), [PATTERNS, TEXT])
    fresh = networks.load(stage).denoiser
    kept = load_file(folder / "first" / frozen.NAME)
    seeded = {name: one.detach() for name, one in fresh.named_parameters() if not one.requires_grad}
    assert kept.keys() == seeded.keys()
    assert any("down_blocks" in name for name in kept) and any("token_embedding" in name for name in kept)
    assert all(torch.equal(kept[name], one) for name, one in seeded.items())
    trained = reader.read_weights(newest(folder, "first"), "raw")
    assert trained.keys() == fresh.trained().keys() and not trained.keys() & kept.keys()
    moved = [name for name, one in fresh.trained().items() if not torch.equal(trained[name], one)]
    assert len([name for name in moved if name.startswith("text_encoder.")]) > 5
    assert names(newest(folder, "first")) == trained.keys() | kept.keys()


def test_a_resume_is_exact_and_zero_3_agrees(runs: tuple[Path, list[str]]) -> None:
    folder, _ = runs
    for which in ("raw", "ema", "exp_avg_sq"):
        stopped, straight, scattered = (
            reader.read_weights(newest(folder, name), which) for name in ("first", "straight", "scattered")
        )
        for name, one in straight.items():
            assert torch.equal(stopped[name], one), name
            if not name.endswith("k_proj.bias"):  # softmax ignores it: its gradient is rounding, which Adam enlarges
                torch.testing.assert_close(scattered[name], one, rtol=1e-4, atol=1e-5)


def test_export_has_the_trained_text_encoder_and_the_frozen_parts(runs: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = runs
    for name in ("first", "second"):
        export(folder / name, tmp_path / name)
        stock = StableDiffusionPipeline.from_pretrained(tmp_path / name)
        found = {f"unet.{key}": one for key, one in stock.unet.named_parameters()}
        found |= {f"text_encoder.{key}": one for key, one in stock.text_encoder.named_parameters()}
        wanted = complete(newest(folder, "first"), "ema").tensors  # the second stands still where it began
        assert found.keys() == wanted.keys()
        for key, one in wanted.items():
            torch.testing.assert_close(found[key], one, rtol=0, atol=1e-8)


def test_what_one_run_froze_the_next_may_train_and_the_reverse(runs: tuple[Path, list[str]]) -> None:
    folder, _ = runs
    began = complete(newest(folder, "first"), "ema").tensors
    second, third = newest(folder, "second"), newest(folder, "third")
    assert not any(name.startswith("text_encoder.") for name in reader.read_weights(second, "raw"))
    assert set(load_file(folder / "second" / frozen.NAME)) == {key for key in began if key.startswith("text_encoder.")}
    assert set(load_file(folder / "third" / frozen.NAME)) == {key for key in began if key.startswith("unet.up_blocks.")}
    assert any(name.startswith("text_encoder.") for name in reader.read_weights(third, "raw"))
    for checkpoint in (second, third):
        found = complete(checkpoint, "raw").tensors
        assert found.keys() == began.keys()
        for key, one in began.items():
            torch.testing.assert_close(found[key], one, rtol=0, atol=1e-8)


def test_previews_use_the_frozen_parts_and_the_trained_text(runs: tuple[Path, list[str]], toy: Path) -> None:
    folder, _ = runs
    options = ["preview.every=4", "preview.prompts=[a red thing]", "preview.steps=2"]
    stage = load_stage(str(toy / "stage.yaml"), [PATTERNS, TEXT, *options])
    assert stage.model.vae and stage.model.text
    checkpoint, found = newest(folder, "first"), networks.load(stage)
    previewer = networks.previewer(found)  # the seed's frozen parts, as in that run
    assert previewer is not None
    picture = previewer.draw(reader.read_weights(checkpoint, "ema"))
    whole = Beside(
        vae=components.load_vae(stage.model.vae.source),
        text_encoder=components.load_text_encoder(stage.model.text.encoder),
        tokenizer=found.tokenizer,
    )
    assert np.array_equal(picture, Previewer(stage, whole).draw(complete(checkpoint, "ema").tensors))
    before = {name: one.detach() for name, one in found.trained().items()}
    assert not np.array_equal(picture, previewer.draw(before))


def test_what_does_not_fit_is_refused(runs: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, refused = runs
    assert len(refused) == len(REFUSALS)
    assert "frozen.safetensors and model.frozen differ (text_encoder." in refused[0]
    assert "init_ema=true, but" in refused[1] and "the weights alone" in refused[1]
    assert "model.frozen: unet.nothing.* matches no parameter" in refused[2]
    assert "match all parameters" in refused[3]
    copy = tmp_path / "copy" / "checkpoints" / newest(folder, "first").name
    copy.parent.mkdir(parents=True)
    copy.symlink_to(newest(folder, "first"))
    with pytest.raises(UsageError, match=r"frozen\.safetensors is absent"):
        complete(copy, "ema")
    (tmp_path / "copy" / frozen.NAME).write_bytes((folder / "second" / frozen.NAME).read_bytes())
    with pytest.raises(UsageError, match="is not the one of its checkpoints"):
        complete(copy, "ema")
