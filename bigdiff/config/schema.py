"""Every knob of a training stage, once, typed, with its unit and default.

Values come from `configs/base.yaml`, the stage's file and `key=value` arguments (bigdiff.config.load). A knob that
does nothing does not exist: it is added here in the same commit as the code that reads it.
"""

from dataclasses import dataclass, field
from typing import Literal

from bigdiff.config.errors import UsageError
from bigdiff.config.speed import Speed
from bigdiff.config.validation import Validation


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One of several sets of a stage and its share of the run."""

    latents: str = ""  # as Data.latents
    images: str = ""  # as Data.images
    proportion: float = 0.0  # share of the run's samples; 0: by size x upsample, of what proportions leave
    upsample: float = 1.0  # factor on its natural share
    repeat: float = 0.0  # passes after which it gives nothing more and the others take its share; 0: no limit
    until: int = 0  # position in the run from which on it gives nothing; 0: no limit

    @property
    def location(self) -> str:
        """Of its set, of either kind."""
        return self.latents or self.images


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The shard sets of a stage, of latents or of pictures, and how their order is drawn."""

    latents: str = ""  # folder, http(s):// or s3:// address of a set with manifest.json of kind "latents"
    images: str = ""  # the same of kind "images", whose pictures are decoded, framed and encoded while training
    crop: Literal["center", "random"] = "center"  # of pictures; of latents, which must be stored of more boxes
    flip: float = 0.0  # probability that a picture is mirrored; of latents, which must be stored of both
    buckets: bool = False  # the shards have shapes of their own, of about resolution^2 pixels; a step is in one of them
    sources: list[Source] = field(default_factory=list)  # or several, shared; OmegaConf does not check a tuple's items
    window: int = 64  # shards of a lane whose samples are shuffled together
    canonical_nodes: int = 1  # lanes of the order: up to this many nodes read (nearly) disjoint shards
    read_ahead: int = 2  # global batches read before they are asked for
    read_threads: int = 2  # threads of preadv per process
    disk_ahead_gb: float = 1.0  # of a process's next samples, asked for from the disk of a set in a folder; 0: none
    memory_gb: float = 0.0  # of latents that a process keeps in memory once it has read them; 0: none
    cache: str = ""  # folder on each node's own disk for the shards of remote sets
    cache_gb: float = 0.0  # its bound; two windows of the node's lanes must fit
    tombstones: str = ""  # text file of keys, URLs or sha256 that must not be trained on, one a line
    damage_budget: float = 0.01  # share of damaged samples that are substituted before the run ends
    audit: bool = False  # log what each step consumed; `python -m bigdiff.data.audit RUN` reads it


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples per optimizer step."""

    total: int = 2048  # over all processes and accumulation steps
    micro: int = 4  # per process and forward pass


@dataclass(frozen=True, kw_only=True, slots=True)
class UNet:
    """Arguments of diffusers' UNet2DConditionModel; `sample_size` follows from resolution and VAE factor.

    Without text, which is cross_attention_dim=0, of UNet2DModel, whose blocks are DownBlock2D and AttnDownBlock2D.
    """

    latent_channels: int = 4  # without a VAE those of the pictures: 3, or 1 for grey
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    up_block_types: tuple[str, ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    cross_attention_dim: int = 768
    # diffusers' name; with text the number of heads (SD 1.x: 8), a known misnomer of that library; without, their width
    attention_head_dim: int = 8
    norm_num_groups: int = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Vae:
    """The frozen autoencoder: a local folder in diffusers' layout or a hub id (append `:subfolder`)."""

    source: str
    factor: int = 8  # pixels per latent, along a side


@dataclass(frozen=True, kw_only=True, slots=True)
class Autoencoder:
    """The KL autoencoder that a stage trains, as diffusers' AutoencoderKL (Rombach et al. 2022), and its losses.

    A sample's loss is the sum over its pixels, as in the original code: the weights below are relative to that.
    """

    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # each level but the last halves the sides: f8 has four
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_attention: bool = True  # self-attention at the lowest resolution
    reconstruction: Literal["l1", "l2"] = "l1"
    kl_weight: float = 1e-6
    perceptual_weight: float = 1.0  # of LPIPS; 0: without, which needs no files and gives softer pictures
    perceptual_vgg: str = ""  # torchvision's VGG16 weights, .pth or .safetensors
    perceptual_heads: str = ""  # LPIPS's linear heads (lpips 0.1, vgg.pth); "": the unlearned distance
    disc_weight: float = 0.5  # of the adversarial loss, beside the adaptive weight; 0: no discriminator
    disc_start: int = 50001  # step from which on the discriminator learns and is listened to
    disc_channels: int = 64  # of its first layer
    disc_layers: int = 3  # that halve the picture; 3: patches of 70 pixels

    @property
    def factor(self) -> int:
        """Pixels per latent, along a side."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """The CLIP text model and its tokenizer: local folders in transformers' layout or hub ids."""

    encoder: str
    tokenizer: str
    max_length: int = 77  # tokens per caption
    train: bool = False  # SD 1.x keeps it frozen


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The networks: all three of latent diffusion; no `text` is unconditional, no `vae` trains on the pixels.

    With `autoencoder` the stage trains that instead, and has none of the others.
    """

    unet: UNet = field(default_factory=UNet)
    vae: Vae | None = None
    text: Text | None = None
    autoencoder: Autoencoder | None = None
    # patterns of parameters that keep their first values, such as "unet.down_blocks.*"; * stands for dots, too
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Diffusion:
    """The forward process, the training target and the loss; docs/objective.md has the formulas and their sources."""

    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"  # diffusers' names; "sample" is x_0
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False  # no signal at the last timestep (Lin et al. 2024); not with epsilon
    train_timesteps: int = 1000
    weighting: Literal["constant", "min_snr", "p2", "edm"] = "constant"  # of a timestep's squared error
    snr_gamma: float = 0.0  # of min_snr; 5 in Hang et al. 2023
    p2_gamma: float = 0.0  # of p2; 0.5 or 1 in Choi et al. 2022
    p2_k: float = 0.0  # of p2; 1 in Choi et al. 2022
    sigma_data: float = 0.0  # of edm: the scaled latents' standard deviation, about 1 for SD's VAE
    offset_noise: float = 0.0  # strength of a constant per sample and channel, part of the noise; SDXL: 0.05
    input_perturbation: float = 0.0  # strength of noise in the input, not in the target; 0.1 in Ning et al. 2023
    timesteps: Literal["uniform", "logit_normal"] = "uniform"  # the law of t / train_timesteps
    logit_mean: float = 0.0  # of logit_normal (Esser et al. 2024); above 0: more noise
    logit_std: float = 0.0  # of logit_normal; 1 in Esser et al. 2024
    # each sample by itself; one from each of batch.total strata a step; or Sobol's sequence over the whole run
    timestep_draws: Literal["independent", "stratified", "sobol"] = "independent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """AdamW (Loshchilov & Hutter 2019) and the learning rate as a function of the step alone."""

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 10000  # linear from lr x 1e-6, as the SD v1 launch configs do
    schedule: Literal["constant", "cosine", "linear", "ldm_linear"] = "constant"
    decay_start: float = 0.0  # share of the steps after which the decay to zero begins
    # ldm_linear, as SD v1's launch scripts decayed: the steps left are divided by this whole cycle, not by the steps of
    # the decay, so that the rate drops at once when the decay begins
    cycle_steps: int = 0
    grad_clip: float = 1.0  # global L2 norm; 0 switches clipping off


@dataclass(frozen=True, kw_only=True, slots=True)
class Ema:
    """Moving averages of the weights, sharded over the ZeRO partitions; docs/ema.md says how to choose.

    Each costs 4 bytes x parameters / ranks of memory. The first, of `decays` if there are any, is the one that is
    drawn, handed over and exported unless another is named; without any it is the weights themselves.
    """

    # constant, with the warm-up min(decay, (1 + n) / (10 + n)); lists, as OmegaConf does not check a tuple's items
    decays: list[float] = field(default_factory=lambda: [0.9999])
    power: list[float] = field(default_factory=list)  # relative widths sigma_rel of power functions; 0.05 and 0.1 do
    snapshot_every: int = 0  # steps between stored copies of the power averages, from which other widths are made


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """DeepSpeed and the numbers' format."""

    zero_stage: Literal[0, 1, 2, 3] = 1  # what of the training state is sharded: nothing, optimizer, gradients, weights
    # who shards: DeepSpeed, or at stages 1 and 2, which are then the same, overlapped, of our own: gradients go to
    # their rank alone, beside every backward pass, and are added up in fp32; new weights come beside the next forward
    # pass. The numbers are DeepSpeed's but for rounding, and each resumes the other's checkpoints. No GPU has run it
    sharding: Literal["deepspeed", "overlapped"] = "deepspeed"
    # with overlapped: so many neighbours, as a node's, shard among themselves, and groups of them have copies; 0: all
    # ranks are one group. A ring over hundreds of ranks takes longer than a backward pass; launch/plan.py names a size
    shard_ranks: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 over fp32 masters on GPU, fp32 on CPU
    channels_last: bool = True  # of the activations; ZeRO lays the weights flat, so they cannot be
    # which of the UNet's blocks the backward pass computes again: true, false, auto (so few that the rest fits into the
    # memory), or their names as in diffusers, such as "down_blocks.0,up_blocks.3.resnets.0"
    gradient_checkpointing: bool | str = False
    memory_gb: float = 0.0  # of a device, for auto; 0: its own, or no limit on a CPU
    bucket_elements: int = 50_000_000  # reduce and gather bucket of ZeRO; launch/plan.py names the best for a cluster
    timeout_seconds: int = 600  # of a collective; a hung rank ends the run after this


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """When a run saves itself and how much it keeps."""

    every: int = 5000  # steps
    keep: int = 3  # newest checkpoints; the last one of a stage is always kept
    keep_every: int = 0  # steps: those of each multiple are kept for ever; 0: none
    keep_best: bool = False  # also the one with the lowest mean training loss since the one before
    wait_seconds: int = 300  # after rank 0 has written its file: the others' until then, or the run ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """What a run does about steps that went wrong; docs/recovery.md says what it sees and how often it errs."""

    # a step whose loss or gradient is not finite moves no weights; so many in a row, and the run goes back
    nonfinite_in_a_row: int = 5
    # a step whose loss or gradient norm is so many robust deviations above the median takes the run back to its newest
    # checkpoint, and what it learnt in between is left out; 0: off. 10 over 200 steps takes fewer than one of a million
    # ordinary steps for a spike, unless losses have power-law tails; with small batches 6 sees more
    spike: float = 10.0
    window: int = 200  # applied steps of that median; before so many, no spike is seen. 20 err more, 50 hardly
    budget: float = 0.05  # share of the stage's steps that may move no weights before the run ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """How often a line goes to the log, TensorBoard and metrics.jsonl, and what it counts."""

    every: int = 50  # steps
    price_per_device_hour: float = 0.0  # money, in any currency, for cost/so_far and cost/left; 0: none of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """Pictures of fixed prompts, drawn into TensorBoard."""

    every: int = 0  # steps; 0 draws none
    weights: str = "ema"  # "ema" (the stage's first average), "raw", one such as "ema/0.9999", or several: "ema,raw"
    prompts: tuple[str, ...] = ()
    count: int = 0  # pictures of a model without text; of an autoencoder: the first ones of the data
    steps: int = 20  # DDIM steps
    guidance: float = 3.0
    more_guidance: tuple[float, ...] = ()  # a row of pictures for each, below that of `guidance`


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One training stage: what is trained, on what, for how long and from which weights."""

    name: str
    recipe: str = ""  # what the values come from, for the reader of the resolved config
    runs: str = "runs"  # folder of the runs; this one is <runs>/<name>
    init_from: str = ""  # run that this one starts from: a name under `runs` or a folder; "" is random weights
    init_step: int = 0  # step of its checkpoint; 0 is its end, and a run that is not at its end is refused
    init_weights: str = (
        "ema"  # which of its weights: "ema" (its first average), "raw", or an average such as "ema/0.9999"
    )
    init_ema: bool = False  # its EMA goes on, with its count, instead of starting anew at these weights
    init_optimizer: bool = False  # AdamW's moments and count carry over, instead of starting at zero
    init_schedule: bool = False  # the learning rate goes on from its step, instead of warming up again
    # a UNet that others published, instead of init_from: a .safetensors or .ckpt file in the original layout, or a
    # local folder in diffusers' layout or a hub id (append `:unet`)
    init_unet: str = ""
    seed: int = 0
    resolution: int  # pixels along a side
    steps: int  # optimizer steps
    text_dropout: float = 0.1  # share of captions replaced by "" (classifier-free guidance, Ho & Salimans 2022)
    data: Data
    batch: Batch = field(default_factory=Batch)
    model: Model
    diffusion: Diffusion = field(default_factory=Diffusion)
    optim: Optim = field(default_factory=Optim)
    ema: Ema = field(default_factory=Ema)
    engine: Engine = field(default_factory=Engine)
    speed: Speed = field(default_factory=Speed)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    recovery: Recovery = field(default_factory=Recovery)
    log: Log = field(default_factory=Log)
    preview: Preview = field(default_factory=Preview)
    validation: Validation = field(default_factory=Validation)

    @property
    def beginning(self) -> str:
        """What the first step's weights are, for a person."""
        return self.init_from or self.init_unet or "random weights"

    @property
    def latent_size(self) -> int:
        """Latents along a side; pixels where there is no VAE."""
        return self.resolution // (self.model.vae.factor if self.model.vae else 1)


def accumulation(stage: Stage, world_size: int) -> int:
    """Forward passes per optimizer step and process.

    Raises:
        UsageError: when `batch.total` does not divide over `world_size` processes of `batch.micro` samples.
    """
    per_pass = stage.batch.micro * world_size
    if stage.batch.total % per_pass:
        raise UsageError(
            f"batch.total={stage.batch.total} of stage {stage.name} does not divide over {world_size} processes x "
            f"batch.micro={stage.batch.micro}: take a micro batch that divides {stage.batch.total}/{world_size}"
        )
    return stage.batch.total // per_pass


def single_file(source: str) -> bool:
    """Whether `source` names one file in the original layout, not a folder in diffusers' or a hub id."""
    return source.endswith((".safetensors", ".ckpt"))


def sources(data: Data) -> list[Source]:
    """The sets of a stage, one or several."""
    return data.sources or [Source(latents=data.latents, images=data.images)]


def on_images(data: Data) -> bool:
    """Whether a stage reads pictures, not latents."""
    return any(one.images for one in sources(data))
