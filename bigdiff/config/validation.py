"""The loss on samples that are not trained on: which, how many, how often."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The loss on a held-out set, unweighted and without a discriminator's; of the weights and of the first average.

    Samples, noise and timesteps are the same each time, and for every run with such a set; docs/validation.md.
    """

    set: str = ""  # folder, http(s):// or s3:// address of a set like the stage's own, of other samples; "": none
    every: int = 0  # steps, a multiple of log.every, and at the stage's end; 0: never
    samples: int = 0  # the set's first ones in the order of seed 0, a multiple of batch.total
