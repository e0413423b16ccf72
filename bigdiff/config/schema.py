"""Every knob of a training stage, once, typed, with its unit and default.

Values come from `configs/base.yaml`, the stage's file and `key=value` arguments (bigdiff.config.load). A knob that
does nothing does not exist: it is added here in the same commit as the code that reads it.
"""

from dataclasses import dataclass, field
from typing import Literal

from bigdiff.config.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One of several latent sets of a stage and its share of the run."""

    latents: str  # as Data.latents
    proportion: float = 0.0  # share of the run's samples; 0: by size x upsample, of what proportions leave
    upsample: float = 1.0  # factor on its natural share
    repeat: float = 0.0  # passes after which it gives nothing more and the others take its share; 0: no limit
    until: int = 0  # position in the run from which on it gives nothing; 0: no limit


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The latent shard sets of a stage and how their order is drawn."""

    latents: str = ""  # folder, http(s):// or s3:// address of a set with manifest.json of kind "latents"
    # or several sets and their shares; a list, because OmegaConf does not check the items of a tuple
    sources: list[Source] = field(default_factory=list)
    window: int = 64  # shards of a lane whose samples are shuffled together
    canonical_nodes: int = 1  # lanes of the order: up to this many nodes read (nearly) disjoint shards
    read_ahead: int = 2  # global batches read before they are asked for
    read_threads: int = 2  # threads of preadv per process
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
    """Arguments of diffusers' UNet2DConditionModel; `sample_size` follows from resolution and VAE factor."""

    latent_channels: int = 4
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
    # diffusers' name; for this class the number of heads (SD 1.x: 8), a known misnomer of that library
    attention_head_dim: int = 8
    norm_num_groups: int = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Vae:
    """The frozen autoencoder: a local folder in diffusers' layout or a hub id (append `:subfolder`)."""

    source: str
    factor: int = 8  # pixels per latent, along a side


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """The CLIP text model and its tokenizer: local folders in transformers' layout or hub ids."""

    encoder: str
    tokenizer: str
    max_length: int = 77  # tokens per caption
    train: bool = False  # SD 1.x keeps it frozen


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The three networks of a latent diffusion model."""

    unet: UNet = field(default_factory=UNet)
    vae: Vae
    text: Text


@dataclass(frozen=True, kw_only=True, slots=True)
class Diffusion:
    """The forward process and the training target (Ho et al. 2020; v: Salimans & Ho 2022)."""

    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_timesteps: int = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """AdamW (Loshchilov & Hutter 2019) and the learning rate as a function of the step alone."""

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 10000  # linear from lr x 1e-6, as the SD v1 launch configs do
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    decay_start: float = 0.0  # share of the steps after which cosine or linear decay to zero begins
    grad_clip: float = 1.0  # global L2 norm; 0 switches clipping off


@dataclass(frozen=True, kw_only=True, slots=True)
class Ema:
    """Exponential moving average of the weights, sharded over the ZeRO partitions."""

    decay: float = 0.9999  # with the warm-up min(decay, (1 + n) / (10 + n))


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """DeepSpeed and the numbers' format."""

    zero_stage: Literal[1, 2] = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 over fp32 masters on GPU, fp32 on CPU
    channels_last: bool = True  # of the activations; ZeRO lays the weights flat, so they cannot be
    gradient_checkpointing: bool = False
    bucket_elements: int = 50_000_000  # reduce and gather bucket of ZeRO
    timeout_seconds: int = 600  # of a collective; a hung rank ends the run after this


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """When a run saves itself and how much it keeps."""

    every: int = 5000  # steps
    keep: int = 3  # newest checkpoints; the last one of a stage is always kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """How often a line goes to the log, TensorBoard and metrics.jsonl."""

    every: int = 50  # steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """Pictures of fixed prompts from the EMA weights, drawn into TensorBoard."""

    every: int = 0  # steps; 0 draws none
    prompts: tuple[str, ...] = ()
    steps: int = 20  # DDIM steps
    guidance: float = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One training stage: what is trained, on what, for how long and from which weights."""

    name: str
    recipe: str = ""  # what the values come from, for the reader of the resolved config
    runs: str = "runs"  # folder of the runs; this one is <runs>/<name>
    init_from: str = ""  # run whose EMA weights this one starts from: a name under `runs` or a folder; "" is random
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
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    preview: Preview = field(default_factory=Preview)

    @property
    def latent_size(self) -> int:
        """Latents along a side."""
        return self.resolution // self.model.vae.factor


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where a stage runs: this machine's devices or a SLURM partition."""

    name: str
    kind: Literal["local", "slurm"] = "slurm"
    nodes: int = 1
    processes_per_node: int = 8  # one per GPU
    gpus_per_node: int = 8  # 0: CPU and gloo
    cpus_per_process: int = 8  # 0 on a local machine: an equal share of its cores
    memory_gb: int = 0  # per node; 0 leaves it to the cluster
    time_minutes: int = 1440
    signal_seconds: int = 300  # warning before the time limit; the run saves and requeues on it
    max_requeues: int = 100  # time-outs and preemptions after which submitit stops requeueing
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""  # nodes to avoid, in SLURM's notation
    setup: tuple[str, ...] = ()  # shell lines before the job: module load, source, export
    environment: tuple[str, ...] = ()  # KEY=VALUE for every process, for example NCCL_IB_HCA=mlx5


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


def sources(data: Data) -> list[Source]:
    """The sets of a stage, one or several."""
    return data.sources or [Source(latents=data.latents)]
