"""What a latent set is made with: from a stage's configuration, or said one by one. No torch: a refusal is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Stage, on_images, sources
from bigdiff.data.contract import CROPS

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]
MOST_CROPS: Final = 9
LEAST_PSNR: Final = 10.0  # dB; a fitting autoencoder gives 20 to 35, a wrong pixel range or kernel below 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a latent set is made with. `workers` and `least_psnr` do not change its bytes."""

    vae: str
    tokenizer: str
    resolution: int = 0  # pixels along a side; 0 for a set whose shards have buckets, which say it
    text_length: int = 77
    batch: int = 64
    workers: int | None = None  # processes on CPU, decoding threads beside each GPU; None: see `beside`
    least_psnr: float = LEAST_PSNR
    precision: Precision = "fp32"  # that the autoencoder encodes in
    fused_norms: bool = False  # with its norms by bigdiff.models.norm_kernels, on a GPU in half precision
    text_encoder: str = ""  # whose states are stored beside the token ids; "": none are
    mirrored: bool = False  # also the mirrored pictures' latents
    mean_only: bool = False  # the posterior's mean without its log-variance
    crops: int = 1  # boxes of each picture, the centre among them

    def __post_init__(self) -> None:
        if self.crops not in range(1, MOST_CROPS + 1, 2):
            raise UsageError(
                f"--crops {self.crops} must be odd, so that one of them is the centre, and at most {MOST_CROPS}"
            )
        if self.fused_norms and self.precision == "fp32":
            raise UsageError("--fused-norms has no effect on --precision fp32: add --precision fp16, or drop it")

    @property
    def computed_in(self) -> str:
        """What moments are rounded by, as a set's lineage has it."""
        return f"{self.precision}, fused norms" if self.fused_norms else self.precision


def beside(cores: int, gpus: int) -> int:
    """How many processes encode on CPU, or threads decode for each GPU, where nobody says it."""
    return max(2, cores // gpus - 1) if gpus else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a command line says; of what a stage says, one or the other."""

    output: Path | None = None
    vae: str | None = None
    tokenizer: str | None = None
    resolution: int | None = None
    text_length: int | None = None
    text_encoder: str | None = None
    text_states: bool = False
    mirrored: bool = False
    mean_only: bool = False
    crops: int | None = None
    workers: int | None = None
    least_psnr: float = LEAST_PSNR
    precision: Precision = "fp32"
    fused_norms: bool = False

    def refuse_conflicts(self, stage: bool, overrides: bool) -> None:
        """Raise a UsageError for what contradicts or lacks a stage."""
        named = [self.vae, self.tokenizer, self.resolution, self.text_length, self.text_encoder]
        if stage and any(named):
            raise UsageError(
                "--vae, --tokenizer, --resolution, --text-length and --text-encoder come from --stage: give one or the "
                "other"
            )
        if not stage and (overrides or not all([self.vae, self.tokenizer, self.output])):
            raise UsageError("without --stage give --vae, --tokenizer, --resolution and --output, and no key=value")
        if not stage and self.text_states != bool(self.text_encoder):
            raise UsageError("without --stage, --text-states and --text-encoder go together: give both or neither")


def chosen(stage: Stage | None, asked: Asked) -> tuple[Settings, Path]:
    """The settings and the folder of a stage's latent set, or those that were named, once they have no conflicts.

    Raises:
        UsageError: as `of_stage` and `output_of`.
    """
    if stage is not None:
        return of_stage(stage, asked), asked.output or output_of(stage)
    assert asked.vae and asked.tokenizer and asked.output, "refuse_conflicts has looked"
    named = Settings(
        vae=asked.vae,
        tokenizer=asked.tokenizer,
        resolution=asked.resolution or 0,
        text_length=asked.text_length or 77,
        workers=asked.workers,
        least_psnr=asked.least_psnr,
        precision=asked.precision,
        fused_norms=asked.fused_norms,
        text_encoder=asked.text_encoder or "",
        mirrored=asked.mirrored,
        mean_only=asked.mean_only,
        crops=1 if asked.crops is None else asked.crops,
    )
    return named, asked.output


def of_stage(stage: Stage, asked: Asked) -> Settings:
    """The settings that the latent set of `stage` needs.

    Raises:
        UsageError: for a stage without a VAE or without text, which does not say all of them, one whose text encoder
            learns, when its states are asked for, or one that draws its crops, when one alone is asked for.
    """
    vae, text = stage.model.vae, stage.model.text
    if vae is None or text is None:
        raise UsageError(
            f"stage {stage.name} has no model.{'vae' if vae is None else 'text'}: encode for it with --vae, "
            f"--tokenizer, --resolution and --output in place of --stage"
        )
    if asked.text_states and text.train:
        raise UsageError(f"stage {stage.name} trains the text encoder, whose states would change: no --text-states")
    drawn = stage.data.crop == "random"
    if drawn and asked.crops == 1:
        raise UsageError(
            f"stage {stage.name} has data.crop=random, which --crops 1 leaves nothing to draw from: drop it"
        )
    return Settings(
        vae=vae.source,
        tokenizer=text.tokenizer,
        resolution=0 if stage.data.buckets else stage.resolution,
        text_length=text.max_length,
        workers=asked.workers,
        least_psnr=asked.least_psnr,
        precision=asked.precision,
        fused_norms=asked.fused_norms,
        text_encoder=text.encoder if asked.text_states else "",
        mirrored=asked.mirrored or stage.data.flip > 0,
        mean_only=asked.mean_only,
        crops=(CROPS if drawn else 1) if asked.crops is None else asked.crops,
    )


def output_of(stage: Stage) -> Path:
    """The folder of the one latent set that `stage` reads.

    Raises:
        UsageError: when it reads several, one on a server, or pictures.
    """
    if on_images(stage.data):
        raise UsageError(f"stage {stage.name} reads pictures, no latents: say with --output which folder to write")
    found = [source.latents for source in sources(stage.data)]
    if len(found) > 1 or "://" in found[0]:
        raise UsageError(f"stage {stage.name} reads {', '.join(found)}: say with --output which folder to write")
    return Path(found[0])
