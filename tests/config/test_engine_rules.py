"""Settings of the engine that cannot work or would have no effect."""

from pathlib import Path

import pytest
import yaml

from bigdiff.config.engine_rules import bucket_of, in_bf16, passes, sharing
from bigdiff.config.errors import UsageError
from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage

STAGE = {
    "name": "toy",
    "resolution": 64,
    "steps": 10,
    "data": {"latents": "none"},
    "batch": {"total": 8, "micro": 2},
    "model": {"vae": {"source": "none"}, "text": {"encoder": "none", "tokenizer": "none"}},
    "optim": {"warmup_steps": 2},
}


def load(folder: Path, *settings: str) -> Stage:
    (folder / "stage.yaml").write_text(yaml.safe_dump(STAGE))
    return load_stage(str(folder / "stage.yaml"), list(settings))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["engine.bucket_elements=0"], "bucket_elements=0 must be positive and even"),
        (["engine.bucket_elements=7"], "bucket_elements=7 must be positive and even"),
        (["engine.shard_ranks=-1", "engine.sharding=overlapped"], "shard_ranks=-1 must not be negative"),
        (["engine.shard_ranks=8"], "shard_ranks=8 has no effect with engine.sharding=deepspeed"),
        (["engine.zero_stage=0", "engine.bucket_elements=8"], "no effect with engine.zero_stage=0"),
        (
            ["engine.zero_stage=3", "engine.sharding=overlapped"],
            "overlapped is for engine.zero_stage=1 and 2, not for 3",
        ),
        (["engine.timeout_seconds=0"], "timeout_seconds=0 must be positive"),
        (["optim.grad_clip=-1"], "grad_clip=-1.0 must not be negative"),
        (["speed.compile=blocks", "engine.zero_stage=3"], "speed.compile=blocks needs whole weights"),
        (["speed={norm: fused, channels_last: true}", "engine.zero_stage=3"], "speed.norm=fused needs whole weights"),
        (["speed.linear=fp8_wide", "engine.zero_stage=3"], "speed.linear=fp8_wide needs whole weights"),
        (
            ["speed.cuda_graphs=true"],
            "speed.cuda_graphs replays what speed.compile has compiled: set speed.compile, too",
        ),
        *(
            (
                ["speed={compile: whole, cuda_graphs: true}", f"engine.gradient_checkpointing={how}"],
                "do not go together",
            )
            for how in ("true", "auto", "mid_block")
        ),
        (["engine.gradient_checkpointing="], "gradient_checkpointing='' has an empty name"),
        (["engine.gradient_checkpointing='up_blocks,'"], "gradient_checkpointing='up_blocks,' has an empty name"),
        (["engine.gradient_checkpointing=2"], "incompatible with type hint"),
        (["engine.gradient_checkpointing=auto", "engine.memory_gb=-1"], "memory_gb=-1 must not be negative"),
        (["engine.memory_gb=80"], "memory_gb=80 has no effect without engine.gradient_checkpointing=auto"),
        (["engine.gradient_checkpointing=true", "engine.memory_gb=80"], "has no effect without"),
        (["speed.norm=fused"], "speed.norm=fused is computed in channels_last: set speed.channels_last=true"),
        (["speed={norm: fused, channels_last: true, compile: whole}"], "fuse the same operations: set one of them"),
        (
            ["speed={transformer: fused, compile: blocks}"],
            "speed.transformer=fused and speed.compile=blocks fuse the same",
        ),
        (
            [
                "speed.transformer=fused",
                "model.text=null",
                "text_dropout=0",
                "model.unet={cross_attention_dim: 0, "
                "down_block_types: [DownBlock2D, DownBlock2D, DownBlock2D, DownBlock2D], "
                "up_block_types: [UpBlock2D, UpBlock2D, UpBlock2D, UpBlock2D]}",
            ],
            "speed.transformer=fused has no effect on a UNet without text",
        ),
        (["speed.channels_last=true", "engine.channels_last=false"], "keeps what engine.channels_last=false does not"),
        (["speed.attention=fastest"], "speed.attention"),
        (["speed.text_encoder=compiled", "model.text.train=true"], "is of a frozen text encoder, and model.text.train"),
        (["speed.text_encoder=all", "text_dropout=0"], "text_encoder=all has no effect with text_dropout=0"),
        (
            [
                "speed.text_encoder=compiled",
                "model.text=null",
                "text_dropout=0",
                "model.unet={cross_attention_dim: 0, down_block_types: [DownBlock2D], up_block_types: [UpBlock2D]}",
                "model.unet.block_out_channels=[8]",
            ],
            "speed.text_encoder=compiled has no effect without model.text",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, settings: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(tmp_path, *settings)


def test_what_fits_passes(tmp_path: Path) -> None:
    for kind in ("blocks", "whole"):
        load(tmp_path, f"speed.compile={kind}", "speed.channels_last=true", "speed.attention=cudnn")
    load(tmp_path, "speed.attention=flash", "speed.cudnn_benchmark=true", "engine.zero_stage=3")
    load(tmp_path, "speed.text_encoder=compiled", "engine.zero_stage=3", "text_dropout=0")
    load(tmp_path, "speed.text_encoder=all", "model.text.train=false")
    load(tmp_path, "speed.transformer=fused", "engine.zero_stage=3")
    load(tmp_path, "speed={transformer: fused, norm: fused, channels_last: true}")
    for stage in range(4):
        load(tmp_path, f"engine.zero_stage={stage}", "optim.grad_clip=0")
    with pytest.raises(UsageError, match="zero_stage"):
        load(tmp_path, "engine.zero_stage=4")


@pytest.mark.parametrize(
    ("precision", "gpu", "expected"), [("auto", True, True), ("auto", False, False), ("bf16", False, True)]
)
def test_precision(tmp_path: Path, precision: str, gpu: bool, expected: bool) -> None:
    assert in_bf16(load(tmp_path, f"engine.precision={precision}"), gpu) is expected


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_gradients_are_not_added_up_in_bf16(tmp_path: Path, zero_stage: int) -> None:
    stage = load(tmp_path, f"engine.zero_stage={zero_stage}")
    assert passes(stage, 4, gpu=True) == 1  # nothing is added up
    assert passes(stage, 2, gpu=False) == 2  # in fp32
    if zero_stage >= 2:
        assert passes(stage, 2, gpu=True) == 2
    else:
        with pytest.raises(UsageError, match=r"gradients of 2 passes in bf16 .* use engine.zero_stage=2"):
            passes(stage, 2, gpu=True)
    with pytest.raises(UsageError, match="does not divide"):
        passes(stage, 3, gpu=True)


def test_our_own_sharding_adds_up_in_fp32_and_keeps_no_graphs_gradients(tmp_path: Path) -> None:
    stage = load(tmp_path, "engine.sharding=overlapped", "speed={compile: whole, cuda_graphs: true}")
    assert [passes(stage, ranks, gpu=True) for ranks in (4, 2, 1)] == [1, 2, 4]


def test_groups_of_ranks_leave_none_over(tmp_path: Path) -> None:
    stage = load(tmp_path, "engine.sharding=overlapped", "engine.shard_ranks=8")
    assert [sharing(stage, ranks) for ranks in (1, 4, 8, 16, 64)] == [1, 4, 8, 8, 8]
    assert sharing(load(tmp_path), 64) == 64
    with pytest.raises(UsageError, match=r"12 processes are no groups of engine.shard_ranks=8"):
        sharing(stage, 12)


def test_graphs_that_would_overwrite_what_is_added_up_are_refused(tmp_path: Path) -> None:
    for zero_stage in (0, 1, 2):
        stage = load(tmp_path, f"engine.zero_stage={zero_stage}", "speed={compile: whole, cuda_graphs: true}")
        assert passes(stage, 4, gpu=False) == 1
        if zero_stage == 2:
            assert passes(stage, 2, gpu=False) == 2
        else:
            with pytest.raises(
                UsageError, match=f"zero_stage={zero_stage} keeps the gradients .* 2 passes .*engine.zero_stage=2"
            ):
                passes(stage, 2, gpu=False)


def test_a_bucket_is_even_and_holds_no_more_than_there_is() -> None:
    stage = load_stage("512px", ["engine.bucket_elements=1000"])
    assert [bucket_of(stage, elements) for elements in (77, 78, 999, 1000, 10**9)] == [78, 78, 1000, 1000, 1000]
