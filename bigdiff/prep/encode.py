"""An image shard set to a latent shard set under the latent contract, shard by shard, resumable.

Each finished shard is recorded in `_work/`; the manifest is written last and `_work/` removed after it. A kill at any
point and the same command again ends in the same bytes (on the same kind of processor: convolutions round differently
elsewhere).
"""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import torch
from tqdm import tqdm

from bigdiff.config.errors import UsageError
from bigdiff.data import manifest, pixels
from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep.encode_workers import WORK, Plan, on_devices, one_thread, run
from bigdiff.prep.encoder import CANARY, Encoder, load, processes, refuse_buckets, rounding, stored_as
from bigdiff.prep.encoder import encode as pictures
from bigdiff.prep.latent_settings import Settings
from bigdiff.prep.latent_shard import Record, batches, places, read_table
from bigdiff.prep.latent_text import empty
from bigdiff.runtime.allocator import keep_freed
from bigdiff.runtime.files import remove_leftovers, write_bytes, write_json
from bigdiff.runtime.workers import Workers

SETTINGS: Final = "settings.json"
EMPTY: Final = "empty.safetensors"  # tokens and states of the caption "", beside stored states


def encode(images: Path, output: Path, settings: Settings) -> Manifest:
    """Make the latent set in `output`, or finish it; a finished one with these settings is left as it is.

    Raises:
        UsageError: for unusable settings or input, or when `output` was made with others.
        RunError: for a damaged image or an autoencoder that does not fit.
    """
    encoder = load(settings)
    if encoder.device.type == "cpu":
        keep_freed()  # before the processes that share the work are forked
    plan = prepare(images, output, settings, encoder)
    if (output / manifest.NAME).is_file():
        shutil.rmtree(output / WORK, ignore_errors=True)  # a kill between the two last steps leaves it
        return manifest.read(output, "latents")
    if (encoder.mean_only or encoder.half) and plan.todo:
        _try_first(plan, encoder)
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    write_json(output / WORK / SETTINGS, plan.recorded)
    records = plan.finished | _encoded(plan, encoder, settings)
    made = _made(plan, [records[shard.name] for shard in plan.source.shards])
    if encoder.text_encoder is not None:
        with one_thread(encoder.device):
            write_bytes(output / EMPTY, empty(encoder))
    manifest.write(output, made)
    shutil.rmtree(output / WORK)
    return made


def _encoded(plan: Plan, encoder: Encoder, settings: Settings) -> dict[str, Record]:
    """The records of what was left to do: on all GPUs, or as `run` does."""
    if encoder.device.type == "cuda" and torch.cuda.device_count() > 1 and len(plan.todo) > 1:
        with Workers(1).on_devices() as devices:
            return on_devices(plan, replace(settings, workers=encoder.threads), devices)
    done = sum(record.samples for record in plan.finished.values())
    with tqdm(total=plan.source.samples, initial=done, unit=" images", desc=plan.output.name, smoothing=0.05) as bar:
        return run(plan, encoder, processes(settings), lambda count: _advance(bar, count))


def prepare(images: Path, output: Path, settings: Settings, encoder: Encoder) -> Plan:
    """What is to be done; reads, writes nothing.

    Raises:
        UsageError: when `images` is no finished image set, leaves no room for several boxes, or `output` holds a set
            made with other settings.
    """
    source = manifest.read(images, "images")
    if images.resolve() == output.resolve():
        raise UsageError(f"--images and --output are both {images}: choose another output folder")
    refuse_buckets(encoder, images, source.buckets)
    _refuse_no_room(encoder, images, read_table(images / f"{source.shards[0].name}{source.index}"))
    lineage = {
        "images": manifest.fingerprint(images),
        "batch": settings.batch,
        "vae": settings.vae,
        "tokenizer": settings.tokenizer,
    } | ({"text_encoder": settings.text_encoder} if settings.text_encoder else {})
    if encoder.half is not None:
        lineage["precision"] = settings.computed_in
    recorded = {"contract": stored_as(encoder, source.buckets).lines(), "lineage": lineage}
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
    )


def _refuse_no_room(encoder: Encoder, images: Path, table: pa.Table) -> None:
    """Raise a UsageError for boxes of pictures that are all of the frame's shape, where the first shard says that."""
    if encoder.crops == 1 or not {"width", "height"} <= {*table.column_names}:
        return
    frame, sizes = encoder.frame, zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    if len(table) and all(wide and tall and not pixels.has_room(wide, tall, frame) for wide, tall in sizes):
        raise UsageError(
            f"--crops {encoder.crops} would store equal copies: the pictures of {images} have the shape of what is "
            f"shown; encode without it, or from whole pictures (pack.crop=none of build_shards.py)"
        )


def _try_first(plan: Plan, encoder: Encoder) -> None:
    """Encode the first batch that is left: a posterior that does not bear these settings is refused before all else."""
    shard = plan.todo[0]
    stem = plan.images / shard.name
    sources = places(read_table(Path(f"{stem}{plan.source.index}")))[: encoder.batch]
    chosen = replace(encoder, bucket=shard.bucket)
    with one_thread(encoder.device), contextlib.closing(batches(Path(f"{stem}.tar"), sources, chosen)) as first:
        shown, keys = next(first).shown, [key for key, _, _ in sources]
        rounding(chosen, shown[:CANARY], keys)
        pictures(chosen, shown, keys)


def _made(plan: Plan, records: list[Record]) -> Manifest:
    """The finished set's manifest, of the records in the shards' order."""
    shards = tuple(
        Shard(
            name=one.name,
            samples=one.samples,
            bytes=one.bytes,
            sha256=one.sha256,
            index_sha256=one.index_sha256,
            bucket=shard.bucket,
        )
        for one, shard in zip(records, plan.source.shards, strict=True)
    )
    contract: dict[str, Any] = plan.recorded["contract"]
    figures = {
        "psnr_db": [one.psnr for one in records],
        "latent_mean": [one.mean for one in records],
        "latent_std": [one.std for one in records],
        "enlarged": sum(one.enlarged for one in records),
    }
    if contract.get("crops", 1) > 1:
        figures["cropped"] = sum(one.cropped for one in records)
    if "precision" in plan.recorded["lineage"]:
        figures["rounding"] = [one.rounding for one in records]
    if contract["stored"] == "mean":
        figures["posterior_spread"] = [one.spread for one in records]
    return Manifest(kind="latents", shards=shards, contract=contract, lineage=plan.recorded["lineage"] | figures)


def _advance(bar: Any, count: int) -> None:  # noqa: ANN401 (tqdm is untyped)
    bar.update(count)


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
    gone = dict.fromkeys(earlier["contract"].keys() - recorded["contract"].keys())  # options that are now left out
    wrong = manifest.differences(earlier["contract"], gone | recorded["contract"])
    # where the networks lay is for the reader; their checksums are what counts
    needed = {"precision": "fp32"} | {
        key: value for key, value in recorded["lineage"].items() if key in ("images", "batch", "precision")
    }
    wrong += manifest.differences({"precision": "fp32"} | earlier["lineage"], needed)
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
