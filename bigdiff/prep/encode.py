"""An image shard set to a latent shard set under the latent contract, shard by shard, resumable.

Each finished shard is recorded in `_work/`; the manifest is written last and `_work/` removed after it. A kill at any
point and the same command again ends in the same bytes (on the same kind of processor: convolutions round differently
elsewhere). On CPU each worker is a process with one thread, which two cores run more steadily than one with two.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.schema import Stage, on_images, sources
from bigdiff.data import manifest, pixels
from bigdiff.data.contract import LatentContract
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.models.components import load_tokenizer, load_vae, token_ids, tokenizer_sha256, weights_sha256
from bigdiff.prep.latent_shard import Encoder, Record, member_bytes, read_table, write_shard
from bigdiff.runtime.files import remove_leftovers, write_json

WORK: Final = "_work"
SETTINGS: Final = "settings.json"
LEAST_PSNR: Final = 10.0  # dB; a fitting autoencoder gives 20 to 35, a wrong pixel range or kernel below 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a latent set is made with. `workers` and `least_psnr` do not change its bytes."""

    vae: str
    tokenizer: str
    resolution: int
    text_length: int = 77
    batch: int = 64
    workers: int = 2  # processes on CPU, decoding threads beside a GPU
    least_psnr: float = LEAST_PSNR


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A set to be made: its settings as recorded, its shards, and those that are finished."""

    images: Path
    output: Path
    source: Manifest
    recorded: dict[str, Any]
    finished: dict[str, Record]
    sample_bytes: int

    @property
    def todo(self) -> tuple[Shard, ...]:
        """Image shards without a finished latent shard."""
        return tuple(shard for shard in self.source.shards if shard.name not in self.finished)


def of_stage(stage: Stage, workers: int, least_psnr: float = LEAST_PSNR) -> Settings:
    """The settings that the latent set of `stage` needs.

    Raises:
        UsageError: for a stage without a VAE or without text, which does not say all of them.
    """
    vae, text = stage.model.vae, stage.model.text
    if vae is None or text is None:
        raise UsageError(
            f"stage {stage.name} has no model.{'vae' if vae is None else 'text'}: encode for it with --vae, "
            f"--tokenizer, --resolution and --output in place of --stage"
        )
    return Settings(
        vae=vae.source,
        tokenizer=text.tokenizer,
        resolution=stage.resolution,
        text_length=text.max_length,
        workers=workers,
        least_psnr=least_psnr,
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


def encode(images: Path, output: Path, settings: Settings) -> Manifest:
    """Make the latent set in `output`, or finish it; a finished one with these settings is left as it is.

    Raises:
        UsageError: for unusable settings or input, or when `output` was made with others.
        RunError: for a damaged image or an autoencoder that does not fit.
    """
    encoder = load(settings)
    plan = prepare(images, output, settings, encoder)
    if (output / manifest.NAME).is_file():
        shutil.rmtree(output / WORK, ignore_errors=True)  # a kill between the two last steps leaves it
        return manifest.read(output, "latents")
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    write_json(output / WORK / SETTINGS, plan.recorded)
    done = sum(record.samples for record in plan.finished.values())
    with tqdm(total=plan.source.samples, initial=done, unit=" images", desc=output.name, smoothing=0.05) as bar:
        records = plan.finished | run(plan, encoder, settings.workers, lambda count: _advance(bar, count))
    ordered = [records[shard.name] for shard in plan.source.shards]
    made = Manifest(
        kind="latents",
        shards=tuple(
            Shard(
                name=one.name,
                samples=one.samples,
                bytes=one.bytes,
                sha256=one.sha256,
                index_sha256=one.index_sha256,
            )
            for one in ordered
        ),
        contract=plan.recorded["contract"],
        lineage=plan.recorded["lineage"]
        | {"psnr_db": [one.psnr for one in ordered], "enlarged": sum(one.enlarged for one in ordered)},
    )
    manifest.write(output, made)
    shutil.rmtree(output / WORK)
    return made


def load(settings: Settings) -> Encoder:
    """The autoencoder and tokenizer of `settings`, on the GPU when there is one.

    Raises:
        UsageError: when one is absent, or they and the resolution do not fit.
    """
    for key in ("resolution", "text_length", "batch", "workers"):
        if getattr(settings, key) <= 0:
            raise UsageError(f"{key}={getattr(settings, key)} must be positive")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = load_vae(settings.vae).to(device, memory_format=torch.channels_last)
    tokenizer = load_tokenizer(settings.tokenizer, settings.text_length)
    if len(tokenizer) > 2**16:
        raise UsageError(f"tokenizer {settings.tokenizer} has {len(tokenizer)} tokens, more than uint16 holds")
    if settings.resolution % _factor(vae.config):
        raise UsageError(f"resolution={settings.resolution} does not divide by the autoencoder's {_factor(vae.config)}")
    return Encoder(
        vae=vae,
        tokenizer=tokenizer,
        resolution=settings.resolution,
        batch=settings.batch,
        device=device,
        threads=settings.workers if device.type == "cuda" else 1,
        least_psnr=settings.least_psnr,
    )


def contract(encoder: Encoder) -> dict[str, Any]:
    """The contract of the set that `encoder` makes."""
    return LatentContract(
        vae_sha256=weights_sha256(encoder.vae),
        vae_scaling_factor=float(encoder.vae.config["scaling_factor"]),
        vae_factor=_factor(encoder.vae.config),
        latent_channels=encoder.vae.config["latent_channels"],
        resolution=encoder.resolution,
        tokenizer_sha256=tokenizer_sha256(encoder.tokenizer),
        empty_tokens=tuple(token_ids(encoder.tokenizer, [""])[0].tolist()),
        resize=pixels.RESIZE,
        crop=pixels.CROP,
    ).lines()


def prepare(images: Path, output: Path, settings: Settings, encoder: Encoder) -> Plan:
    """What is to be done; reads, writes nothing.

    Raises:
        UsageError: when `images` is no finished image set, or `output` holds a set made with other settings.
    """
    source = manifest.read(images, "images")
    if images.resolve() == output.resolve():
        raise UsageError(f"--images and --output are both {images}: choose another output folder")
    read_table(images / f"{source.shards[0].name}{source.index}")
    lineage = {
        "images": manifest.fingerprint(images),
        "batch": settings.batch,
        "vae": settings.vae,
        "tokenizer": settings.tokenizer,
    }
    recorded = {"contract": contract(encoder), "lineage": lineage}
    earlier = _earlier(output)
    if earlier is not None:
        _refuse_other(output, earlier, recorded)
        recorded["lineage"] = {key: earlier["lineage"][key] for key in lineage}
    elif output.is_dir() and any(output.glob("*.tar")):
        raise UsageError(f"{output} holds tars that this command did not write: choose another folder")
    return Plan(
        images=images,
        output=output,
        source=source,
        recorded=recorded,
        finished=_finished(output, source),
        sample_bytes=member_bytes(encoder),
    )


def run(plan: Plan, encoder: Encoder, workers: int, advance: Callable[[int], None]) -> dict[str, Record]:
    """Encode the shards that are left: in this process on a GPU or for one worker, else in processes of one thread."""
    names = [shard.name for shard in plan.todo]
    if encoder.device.type == "cuda" or workers == 1 or len(names) <= 1:
        with one_thread(encoder.device):
            return {name: _one(plan, encoder, name, advance) for name in names}
    return _in_processes(plan, encoder, [names[worker::workers] for worker in range(min(workers, len(names)))], advance)


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One torch thread on CPU, so that every number of workers gives the same bytes."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one(plan: Plan, encoder: Encoder, name: str, advance: Callable[[int], None]) -> Record:
    record = write_shard(plan.images, plan.output, name, encoder, advance, plan.source.index)
    write_json(plan.output / WORK / f"{name}.json", asdict(record))
    return record


def _in_processes(
    plan: Plan, encoder: Encoder, shares: Sequence[list[str]], advance: Callable[[int], None]
) -> dict[str, Record]:
    # fork: the loaded networks and imports (seconds of them) are inherited; torch has run one-threaded until here
    context = multiprocessing.get_context("fork")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its thread pool does not survive a fork
    records: dict[str, Record] = {}
    ends: dict[Connection, Any] = {}
    try:
        for share in shares:
            receive, send = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(plan, encoder, share, send, os.getpid()), daemon=True)
            worker.start()
            send.close()  # so that a dead worker is the end of its pipe
            ends[receive] = worker
        left = dict(ends)
        while left:
            for end in wait(list(left)):
                assert isinstance(end, Connection)
                try:
                    kind, value = end.recv()
                except EOFError:
                    _joined(left.pop(end))
                    continue
                if kind == "images":
                    advance(value)
                elif kind == "shard":
                    records[value.name] = value
                else:
                    raise {"usage": UsageError, "run": RunError}[kind](value)
    finally:
        for worker in ends.values():
            worker.terminate()
            worker.join()
    return records


def _joined(worker: Any) -> None:  # noqa: ANN401 (multiprocessing's process type depends on the start method)
    worker.join()
    if worker.exitcode:
        raise RunError(f"a worker ended with code {worker.exitcode}; the same command again continues")


def _work(plan: Plan, encoder: Encoder, names: list[str], send: Connection, parent: int) -> None:
    torch.set_num_threads(1)

    def tell(count: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the command was killed: do not go on writing behind its back
        send.send(("images", count))

    try:
        for name in names:
            send.send(("shard", _one(plan, encoder, name, tell)))
    except UsageError as error:
        send.send(("usage", str(error)))
    except RunError as error:
        send.send(("run", str(error)))
    except KeyboardInterrupt:
        os._exit(130)  # the command itself reports it
    except Exception:  # noqa: BLE001 (the border of a process: whatever it was is reported in full)
        send.send(("run", f"a worker failed:\n{traceback.format_exc()}"))


def _advance(bar: Any, count: int) -> None:  # noqa: ANN401 (tqdm is untyped)
    bar.update(count)


def _factor(config: Any) -> int:  # noqa: ANN401 (diffusers' frozen dict)
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _earlier(output: Path) -> dict[str, Any] | None:
    if (output / manifest.NAME).is_file():
        made = manifest.read(output, "latents")
        return {"contract": made.contract, "lineage": made.lineage}
    try:
        content: dict[str, Any] = json.loads((output / WORK / SETTINGS).read_text())
    except FileNotFoundError:
        return None
    return content


def _refuse_other(output: Path, earlier: dict[str, Any], recorded: dict[str, Any]) -> None:
    wrong = manifest.differences(earlier["contract"], recorded["contract"])
    # where the networks lay is for the reader; their checksums are what counts
    needed = {key: recorded["lineage"][key] for key in ("images", "batch")}
    wrong += manifest.differences(earlier["lineage"], needed)
    if wrong:
        raise UsageError(
            f"{output} was made with other settings: {'; '.join(wrong)}. Choose another folder or delete it"
        )


def _finished(output: Path, source: Manifest) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for shard in source.shards:
        path = output / WORK / f"{shard.name}.json"
        if not path.is_file():
            continue
        record = Record(**json.loads(path.read_text()))
        tar = output / f"{shard.name}.tar"
        if tar.is_file() and tar.stat().st_size == record.bytes and tar.with_suffix(".parquet").is_file():
            found[shard.name] = record
    return found
