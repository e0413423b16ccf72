"""Turn prompts into a PNG grid: `python launch/sample.py --pipeline DIR --prompt "a red circle" --output grid.png`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from bigdiff.config.errors import UsageError, door


def main() -> None:
    """Parse, sample, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, required=True, help="pipeline folder, as launch/export.py writes it")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="text file, a prompt a line")
    prompts.add_argument("--count", type=int, metavar="N", help="pictures of a model without text")
    parser.add_argument("--output", type=Path, required=True, help="PNG file; holds the settings as text")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what the pictures must not show")
    parser.add_argument("--guidance", type=float, default=3.0, help="default: %(default)s; 1 is none")
    parser.add_argument(
        "--scheduler", default="ddim", help="ddim, ddpm, pndm, euler, heun, dpm++, unipc (default: ddim)"
    )
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=8, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--size", type=int, default=0, help="pixels along a side (default: the model's own)")
    parser.add_argument("--columns", type=int, default=0, help="of the grid (default: about a square)")
    parser.add_argument("--dry-run", action="store_true", help="check the arguments, print the settings and stop")
    arguments = parser.parse_args()
    if arguments.output.suffix != ".png":
        raise UsageError(f"--output {arguments.output} must end in .png")

    from bigdiff.evaluate import grid, sampling, textless  # torch and diffusers: seconds

    settings = sampling.Sampling(
        steps=arguments.steps,
        guidance=arguments.guidance,
        negative_prompt=arguments.negative,
        scheduler=arguments.scheduler,
        seed=arguments.seed,
        batch=arguments.batch,
        height=arguments.size,
        width=arguments.size,
    )
    sampling.check(settings)
    count = arguments.count
    texts = [""] * count if count is not None else arguments.prompt or sampling.read_prompts(arguments.prompts)
    about = {**asdict(settings), "pipeline": str(arguments.pipeline), "prompts": texts}
    if arguments.dry_run:
        print(about)
        return
    pictures = textless.either(sampling.load(arguments.pipeline), texts, count, settings)
    grid.save(arguments.output, grid.captioned(pictures, texts, arguments.columns), about)
    print(f"{arguments.output}: {len(pictures)} pictures")


if __name__ == "__main__":
    door(main)
