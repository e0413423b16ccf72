"""FID, CLIP-SCORE, CMMD, precision and recall of a pipeline at each guidance, or of a folder; again, it continues."""

import argparse
from pathlib import Path

from bigdiff.config import evaluation
from bigdiff.config.errors import door


def main() -> None:
    """Parse, evaluate, print."""
    epilog = "docs/evaluation.md says what each number is, where weights are found, and how to run on many GPUs."
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("--pipeline", type=Path, help="pipeline folder, as launch/export.py writes it")
    add("--pictures", type=Path, help="in its place: a folder of pictures")
    add("--prompts", type=Path, help="text file, a prompt a line, or parquet; of --pictures in the files' order")
    add("--column", default="", help="of the parquet file (default: caption, prompt, text or TEXT)")
    add("--images", type=int, default=0, help="how many pictures (default: as many as prompts, or files)")
    add("--real", default="", help="folder of pictures, image set, kept real/... folder, or .npz with mu and sigma")
    add("--real-crop", choices=("center", "none"), default="center", help="square of each real picture, or all of it")
    add("--cache", type=Path, help="folder where what is seen in real sets is kept (default: OUTPUT/real)")
    add("--inception", default="", help="weights file: FID, precision and recall")
    add("--resize", choices=("clean", "legacy"), default="clean", help="to 299 px as clean-fid, or as TensorFlow 1")
    add("--clip", default="", help="weights file, or local-dir:FOLDER: CLIP-SCORE")
    add("--clip-model", default=evaluation.CLIP_MODEL, help="open_clip's name (default: %(default)s)")
    add("--clip-prefix", default="", help="before each prompt (default: nothing)")
    add("--cmmd-clip", default="", help="weights file, or local-dir:FOLDER: CMMD")
    add("--cmmd-model", default=evaluation.CMMD_MODEL, help="open_clip's name (default: %(default)s)")
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
    add("--tensorboard", type=Path, help="folder for eval/fid, eval/clip_score, ...; needs --samples-seen")
    add("--samples-seen", type=int, help="images that the model was trained on")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--dry-run", action="store_true", help="check the arguments, say what would be done and stop")
    arguments = parser.parse_args()
    wanted = evaluation.asked(vars(arguments))

    from bigdiff.evaluate import judging, report  # torch and diffusers: seconds

    if arguments.dry_run:
        print(judging.plan(wanted))
        return
    points = judging.run(wanted, print)
    if points:  # the first process alone has them
        print(*report.table(points), wanted.output / report.RESULTS, sep="\n")


if __name__ == "__main__":
    door(main)
