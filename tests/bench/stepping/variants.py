"""The switches that tests/bench/step.py throws."""

SCRIPT = "diffusers script"
ALONE = ["engine.channels_last=false"]
OFF = [*ALONE, "speed.text_encoder=all"]
OVERLAPPED = "engine.sharding=overlapped"  # an engine of its own
VARIANTS = {
    SCRIPT: [],
    "off": OFF,
    "default": [],  # engine.channels_last, of the input alone, and no dropped caption encoded
    "channels_last": ["speed={channels_last: true, text_encoder: all}"],
    "norm": ["speed={channels_last: true, norm: fused, text_encoder: all}"],
    "transformer": [*OFF, "speed.transformer=fused"],
    "flash": [*OFF, "speed.attention=flash"],
    "efficient": [*OFF, "speed.attention=efficient"],
    "cudnn": [*OFF, "speed.attention=cudnn"],
    "math": [*OFF, "speed.attention=math"],
    "cudnn_benchmark": [*OFF, "speed.cudnn_benchmark=true"],
    "blocks": [*OFF, "speed.compile=blocks"],
    "whole": [*OFF, "speed.compile=whole"],
    "text kept": ALONE,
    "text compiled": [*ALONE, "speed.text_encoder=compiled"],
    "blocks, graphs": [*OFF, "speed.compile=blocks", "speed.cuda_graphs=true"],
    "whole, graphs": [*OFF, "speed.compile=whole", "speed.cuda_graphs=true"],
    "fp8": [*OFF, "speed.linear=fp8"],
    "blocks, fp8": [*OFF, "speed.compile=blocks", "speed.linear=fp8"],
    "blocks, fp8_wide": [*OFF, "speed.compile=blocks", "speed.linear=fp8_wide"],
    "whole, fp8_wide": [*OFF, "speed.compile=whole", "speed.linear=fp8_wide"],
    "overlapped": [*OFF, OVERLAPPED],
    "checkpointing": [*OFF, "engine.gradient_checkpointing=true"],
    "all, blocks": ["speed={compile: blocks, channels_last: true, cudnn_benchmark: true, text_encoder: compiled}"],
    "all, whole": ["speed={compile: whole, channels_last: true, cudnn_benchmark: true, text_encoder: compiled}"],
    "all, whole, cudnn": [
        "speed={compile: whole, channels_last: true, cudnn_benchmark: true, text_encoder: compiled, attention: cudnn}"
    ],
    "all, whole, overlapped": [
        "speed={compile: whole, channels_last: true, cudnn_benchmark: true, text_encoder: compiled}",
        OVERLAPPED,
    ],
}
QUICK = [
    *[SCRIPT, "off", "channels_last", "norm", "transformer", "math", "cudnn", "fp8", "text kept", "checkpointing"],
    "overlapped",
    "all, blocks",
]
