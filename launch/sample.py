"""Draw prompts: `python launch/sample.py --pipeline DIR --prompt "a red circle" --output grid.png`."""

import argparse
from pathlib import Path

from bigdiff.config import drawing as settings
from bigdiff.config.errors import door
from bigdiff.config.scoring import CLIP_MODEL


def main() -> None:
    """Parse, draw, save."""
    epilog = "docs/sampling.md says more of each, with examples."
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("--pipeline", type=Path, required=True, help="pipeline folder, as launch/export.py writes it")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    prompts.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a prompt a line, or .jsonl: prompt, negative, seed"
    )
    prompts.add_argument("--count", type=int, metavar="N", help="pictures of a model without text")
    add("--output", type=Path, metavar="FILE", help="PNG of all pictures; holds the settings as text")
    add("--folder", type=Path, metavar="DIR", help="each picture as a PNG of its own; those that are there stay")
    add("--negative", default="", metavar="TEXT", help="what the pictures must not show")
    add("--guidance", type=float, default=3.0, help="default: %(default)s; 1 is none")
    add("--scheduler", default="ddim", help="ddim, ddpm, pndm, euler, heun, dpm++, unipc (default: ddim)")
    add("--steps", type=int, default=20, help="default: %(default)s")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, help="default: 0")
    seeds.add_argument("--seeds", metavar="1,2,3", help="each prompt with each of them")
    add("--batch", type=int, default=8, help="pictures at a time (default: %(default)s)")
    add("--size", type=int, default=0, help="pixels along a side, the shorter of --image (default: the model's own)")
    add("--columns", type=int, default=0, help="of the grid (default: one for each seed, or about a square)")
    add("--image", type=Path, metavar="FILE", help="picture that each begins with")
    add("--strength", type=float, help="share of the steps that change --image, 0 to 1 (default: 0.8)")
    add("--upscale", type=float, metavar="FACTOR", help="draw, enlarge the latents, draw over at that size; such as 2")
    add("--upscale-strength", type=float, help="share of the steps at the larger size, 0 to 1 (default: 0.5)")
    add("--clip-guidance", type=float, metavar="SCALE", help="leads to what CLIP takes for the prompt; such as 100")
    add("--clip", default="", help="CLIP's weights file, or local-dir:FOLDER")
    add("--clip-model", default=CLIP_MODEL, help="open_clip's name (default: %(default)s)")
    add("--dry-run", action="store_true", help="check the arguments, print the settings and stop")
    arguments = parser.parse_args()
    wanted = settings.asked(vars(arguments))

    from bigdiff.evaluate import drawing  # torch and diffusers: seconds

    if arguments.dry_run:
        print(drawing.summary(drawing.plan(wanted)))
        return
    drawing.run(wanted, print)


if __name__ == "__main__":
    door(main)
