"""Encode an image shard set into latents: `python data_prep/encode_latents.py --stage NAME --images DIR`."""

import argparse
import json
from pathlib import Path

from bigdiff.config.errors import UsageError, door
from bigdiff.config.load import load_stage


def main() -> None:
    """Parse, encode, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of the image shard set")
    parser.add_argument("--output", type=Path, help="folder of the latent set (default: the stage's data.latents)")
    parser.add_argument("--stage", help="stage that names autoencoder, tokenizer and resolution")
    parser.add_argument("--vae", help="without --stage: local folder or hub id[:subfolder]")
    parser.add_argument("--tokenizer", help="without --stage: local folder or hub id[:subfolder]")
    parser.add_argument("--resolution", type=int, help="without --stage: pixels along a side")
    parser.add_argument("--text-length", type=int, help="without --stage: tokens per caption (default: 77)")
    parser.add_argument("--workers", type=int, default=2, help="processes on CPU, decoding threads beside a GPU")
    parser.add_argument("--least-psnr", type=float, default=10.0, help="dB below which the canary fails (default: 10)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the stage's configuration")
    arguments = parser.parse_args()
    explicit = [arguments.vae, arguments.tokenizer, arguments.resolution]
    if arguments.stage and any([*explicit, arguments.text_length]):
        raise UsageError("--vae, --tokenizer, --resolution and --text-length come from --stage: give one or the other")
    if not arguments.stage and (arguments.overrides or not all([*explicit, arguments.output])):
        raise UsageError("without --stage give --vae, --tokenizer, --resolution and --output, and no key=value")
    stage = load_stage(arguments.stage, arguments.overrides) if arguments.stage else None

    from bigdiff.prep import encode as latents  # after the arguments are known to be good: torch takes seconds

    if stage is not None:
        settings = latents.of_stage(stage, arguments.workers, arguments.least_psnr)
        output = arguments.output or latents.output_of(stage)
    else:
        length = arguments.text_length or 77
        names = dict(vae=arguments.vae, tokenizer=arguments.tokenizer, resolution=arguments.resolution)
        settings = latents.Settings(
            **names, text_length=length, workers=arguments.workers, least_psnr=arguments.least_psnr
        )
        output = arguments.output
    if arguments.dry_run:
        plan = latents.prepare(arguments.images, output, settings, latents.load(settings))
        print(json.dumps(plan.recorded, indent=2))
        print(
            f"would encode {len(plan.todo)} of {len(plan.source.shards)} shards, {plan.source.samples} images, {output}"
        )
        return
    made = latents.encode(arguments.images, output, settings)
    print(f"{output}: {made.samples} samples in {len(made.shards)} shards, {sum(s.bytes for s in made.shards)} bytes")


if __name__ == "__main__":
    door(main)
