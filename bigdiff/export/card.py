"""The model card of an exported pipeline: what it was made with, in the numbers of its run."""

import json
from pathlib import Path
from typing import Any

from bigdiff.checkpoint.reader import read_index
from bigdiff.config.schema import Stage
from bigdiff.export.measured import scores


def card(run: Path, stage: Stage, checkpoint: Path, which: str, dtype: str) -> str:
    """Markdown of a pipeline folder; `which` says in words what the weights are."""
    lines = [f"# {stage.name}", "", "A latent diffusion model trained with bigdiff, as a diffusers pipeline.", ""]
    lines += [
        *facts(run, stage, checkpoint, which, dtype),
        "```python",
        "from diffusers import StableDiffusionPipeline",
        'pipeline = StableDiffusionPipeline.from_pretrained("this folder")',
        'pipeline("a caption", num_inference_steps=20, guidance_scale=3.0).images[0]',
        "```",
        "",
    ]
    return "\n".join(lines)


def facts(run: Path, stage: Stage, checkpoint: Path, which: str, dtype: str) -> list[str]:
    """Lines of tables: recipe, steps, images seen, data, target and code; and what was measured of these weights.

    Raises:
        UsageError: as `scores`.
    """
    index = read_index(checkpoint)
    about, noise = _about(run), stage.diffusion
    terminal = ", zero terminal SNR: sample with trailing timesteps" if noise.zero_terminal_snr else ""
    rows = {
        "stage": stage.name,
        "recipe": stage.recipe or "none named",
        "started from": stage.beginning,
        "weights": f"{which}, {dtype}",
        "optimizer steps": f"{index.state.step:,}",
        "images seen": f"{index.state.samples_seen:,}",
        "global batch": f"{stage.batch.total:,}",
        "resolution": f"{stage.resolution} px ({stage.latent_size} x {stage.latent_size} latents)",
        "target": noise.prediction_type,
        "noise schedule": f"{noise.beta_schedule}, {noise.beta_start} to {noise.beta_end}{terminal}",
        "loss weighting": noise.weighting,
        "captions dropped": f"{stage.text_dropout:.0%}",
        "learning rate": f"{stage.optim.lr:g}, {stage.optim.schedule}, {stage.optim.warmup_steps:,} warm-up steps",
        "seed": str(stage.seed),
        "latent set": f"manifest sha256 {index.identity.manifest}",
        "code": f"bigdiff commit {about.get('commit', 'unknown')}",
        "libraries": ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items()) or "unknown",
    }
    table = ["| fact | value |", "|---|---|", *(f"| {fact} | {value} |" for fact, value in rows.items()), ""]
    return [*table, *scores(run, checkpoint, which)]


def _about(run: Path) -> dict[str, Any]:
    file = run / "versions.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content
