"""The words of launch/evaluate.py: what it takes, and those that a job of its own takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bigdiff.config.averages import DEFAULT, FORMS
from bigdiff.config.evaluation import CMMD_MODEL
from bigdiff.config.scoring import CLIP_MODEL

CLUSTER: Final = "sd-v1-card"
IN_A_JOB: Final = "in_a_job"
_EPILOG: Final = "docs/evaluation.md says what each number is, where weights are found, and how to run on many GPUs."


def parser(about: str | None) -> argparse.ArgumentParser:
    """Of the door that says `about` itself; no word may be shortened, so that `inside` knows all of them."""
    made = argparse.ArgumentParser(description=about, epilog=_EPILOG, allow_abbrev=False)
    add = made.add_argument
    add("--pipeline", type=Path, help="pipeline folder, as launch/export.py writes it")
    add("--checkpoint", type=Path, help="in its place: a run's, such as runs/512px/checkpoints/step-00050000")
    add("--weights", default=DEFAULT, help=f"of --checkpoint: {FORMS} (default: %(default)s)")
    add("--pictures", type=Path, help="or a folder of pictures")
    add("--prompts", type=Path, help="text file, a prompt a line, or parquet; of --pictures in the files' order")
    add("--column", default="", help="of the parquet file (default: caption, prompt, text or TEXT)")
    add("--images", type=int, default=0, help="how many pictures (default: as many as prompts, or files)")
    add("--real", default="", help="folder of pictures, image set, kept real/... folder, or .npz with mu and sigma")
    add("--real-crop", choices=("center", "none"), default="center", help="square of each real picture, or all of it")
    add("--cache", type=Path, help="folder where what is seen in real sets is kept (default: OUTPUT/real)")
    add("--inception", default="", help="weights file: FID, precision and recall")
    add("--resize", choices=("clean", "legacy"), default="clean", help="to 299 px as clean-fid, or as TensorFlow 1")
    add("--clip", default="", help="weights file, or local-dir:FOLDER: CLIP-SCORE")
    add("--clip-model", default=CLIP_MODEL, help="open_clip's name (default: %(default)s)")
    add("--clip-prefix", default="", help="before each prompt (default: nothing)")
    add("--cmmd-clip", default="", help="weights file, or local-dir:FOLDER: CMMD")
    add("--cmmd-model", default=CMMD_MODEL, help="open_clip's name (default: %(default)s)")
    add("--guidance", default="3", help="scales with commas between them, such as 1.5,3,5,7.5 (default: %(default)s)")
    add("--steps", type=int, default=50, help="default: %(default)s")
    add("--scheduler", default="ddim", help="ddim, ddpm, pndm, euler, heun, dpm++, unipc (default: ddim)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--batch", type=int, default=8, help="pictures drawn at a time (default: %(default)s)")
    add("--size", type=int, default=0, help="pixels along a side (default: the model's own)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: float32")
    add("--processes", type=int, default=0, help="on this machine (default: one for each GPU)")
    add("--few-images", action="store_true", help="FID of no more pictures than features, which is far too high")
    add("--keep", action="store_true", help="keep the drawn pictures as PNG files")
    add("--tensorboard", type=Path, help="folder for eval/fid, eval/clip_score, ...; at --samples-seen")
    add("--samples-seen", type=int, help="images that the model was trained on; a checkpoint knows them")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--async", action="store_true", dest=IN_A_JOB, help="do it in a SLURM job of its own, and return at once")
    add("--cluster", default="", help=f"of that job, a file of configs/cluster (default: {CLUSTER})")
    add("--dry-run", action="store_true", help="check the arguments, say what would be done and stop")
    return made


def inside(words: Sequence[str]) -> tuple[str, ...]:
    """The words of a command that is given to a job, as the job has them: without --async and --cluster."""
    found: list[str] = []
    given = iter(words)
    for word in given:
        if word == "--cluster":
            next(given)
        elif word != "--async" and not word.startswith("--cluster="):
            found.append(word)
    return tuple(found)
