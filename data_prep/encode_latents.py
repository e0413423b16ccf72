"""Encode an image shard set into latents: `python data_prep/encode_latents.py --stage NAME --images DIR`."""

import argparse
import json
from pathlib import Path

from bigdiff.config.errors import door
from bigdiff.config.load import load_stage
from bigdiff.prep import latent_settings


def main() -> None:
    """Parse, encode, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of the image shard set")
    parser.add_argument("--output", type=Path, help="folder of the latent set (default: the stage's data.latents)")
    parser.add_argument("--stage", help="stage that names autoencoder, tokenizer and resolution")
    parser.add_argument("--vae", help="without --stage: local folder or hub id[:subfolder]")
    parser.add_argument("--tokenizer", help="without --stage: local folder or hub id[:subfolder]")
    parser.add_argument("--resolution", type=int, help="without --stage: pixels along a side; none for buckets")
    parser.add_argument("--text-length", type=int, help="without --stage: tokens per caption (default: 77)")
    parser.add_argument("--text-states", action="store_true", help="store the text encoder's states, too")
    parser.add_argument("--text-encoder", help="without --stage, for --text-states: local folder or hub id[:subfolder]")
    parser.add_argument("--mirrored", action="store_true", help="store the mirrored pictures' latents, too (data.flip)")
    parser.add_argument(
        "--crops", type=int, help="store so many boxes of a picture, odd (default: 1, or 3 for data.crop=random)"
    )
    parser.add_argument("--mean-only", action="store_true", help="store no log-variance, where it is next to nothing")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16"], default="fp32", help="of the encoder (fp32)")
    parser.add_argument("--fused-norms", action="store_true", help="norms in kernels of our own, in half precision")
    parser.add_argument("--workers", type=int, help="processes on CPU, decoding threads beside each GPU")
    parser.add_argument("--least-psnr", type=float, default=10.0, help="dB below which the canary fails (default: 10)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the stage's configuration")
    arguments = vars(parser.parse_intermixed_args())
    images, stage, dry, overrides = (arguments.pop(name) for name in ("images", "stage", "dry_run", "overrides"))
    asked = latent_settings.Asked(**arguments)
    asked.refuse_conflicts(bool(stage), bool(overrides))
    settings, output = latent_settings.chosen(load_stage(stage, overrides) if stage else None, asked)

    from bigdiff.prep import encode as latents  # after the arguments are known to be good: torch takes seconds
    from bigdiff.prep.encoder import load
    from bigdiff.prep.latent_figures import strange

    if dry:
        plan = latents.prepare(images, output, settings, load(settings))
        print(json.dumps(plan.recorded, indent=2))
        print(
            f"would encode {len(plan.todo)} of {len(plan.source.shards)} shards, {plan.source.samples} images, {output}"
        )
        return
    made = latents.encode(images, output, settings)
    print(f"{output}: {made.samples} samples in {len(made.shards)} shards, {sum(s.bytes for s in made.shards)} bytes")
    for sentence in strange(made):
        print(f"warning: {sentence}")


if __name__ == "__main__":
    door(main)
