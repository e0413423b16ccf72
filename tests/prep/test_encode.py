import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import webdataset
from tqdm import tqdm

from bigdiff.config.errors import RunError, UsageError
from bigdiff.config.load import load_stage
from bigdiff.data import images as images_of
from bigdiff.data import manifest
from bigdiff.data.course import Picks
from bigdiff.data.damage import Consumed
from bigdiff.data.foreign import index_folder
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.models import components
from bigdiff.prep import encode, latent_settings
from bigdiff.prep.latent_settings import Settings

ImageSet = Callable[..., Path]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stock_webdataset_and_our_reader_see_every_sample(
    image_set: ImageSet, settings: Settings, tmp_path: Path
) -> None:
    images = image_set(6, 4)
    made = encode.encode(images, tmp_path / "out", replace(settings, workers=2))
    urls = [str(tmp_path / "out" / f"{shard.name}.tar") for shard in made.shards]
    stock = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    keys = [key for shard in made.shards for key in pq.read_table(images / f"{shard.name}.parquet")["key"].to_pylist()]
    assert [sample["__key__"] for sample in stock] == keys
    shards, rows = np.repeat([0, 1], [6, 4]), np.concatenate((np.arange(6), np.arange(4)))
    picks = Picks(bucket="", sources=np.zeros(10, np.int64), shards=shards, rows=rows)
    with LatentSet(str(tmp_path / "out")) as latents:
        reader = LatentReader([latents])
        held = reader.hold(10)
        assert reader.fill(held, 0, 0, picks) == [], "every checksum is right"
        batch = reader.make(held, 0, picks, Consumed(position=0, samples=10, digest=0, substituted=()), 0.0)
    for row, sample in enumerate(stock):
        tensors = safetensors.torch.load(sample["safetensors"])
        assert torch.equal(tensors["moments"], batch.moments[row])
        assert torch.equal(tensors["tokens"].to(torch.int64), batch.tokens[row])


def test_tars_that_someone_else_wrote_give_the_same_latents(
    image_set: ImageSet, settings: Settings, tmp_path: Path
) -> None:
    images, others = image_set(5, 4), tmp_path / "others"
    index_folder(_tars_alone(images, tmp_path / "tars"), others, 1, False, lambda line: None)
    one, two = (encode.encode(folder, tmp_path / f"of-{folder.name}", settings) for folder in (images, others))
    tables = [pq.read_table(tmp_path / f"of-{name}" / "00000.parquet") for name in ("images", "others")]
    assert set(tables[1].column_names) == {
        *("key", "caption", "url", "sha256"),
        *("safetensors_offset", "safetensors_length", "safetensors_xxh3"),
    }
    assert tables[0]["key"] == tables[1]["key"]
    for mine, theirs in zip(
        *(_moments(tmp_path / f"of-{name}", made) for name, made in (("images", one), ("others", two))), strict=True
    ):
        assert torch.equal(mine, theirs)


def _tars_alone(images: Path, folder: Path) -> Path:
    folder.mkdir()
    for tar in images.glob("*.tar"):
        shutil.copy(tar, folder)
    return folder


def _moments(folder: Path, made: manifest.Manifest) -> list[torch.Tensor]:
    urls = [str(folder / f"{shard.name}.tar") for shard in made.shards]
    samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    return [safetensors.torch.load(sample["safetensors"])["moments"] for sample in samples]


def test_the_set_fits_the_stage_that_names_it_and_no_other(
    image_set: ImageSet, settings: Settings, toy: Path, tmp_path: Path
) -> None:
    from bigdiff.train.networks import needed_contract

    stage = load_stage(str(toy / "stage.yaml"))
    chosen = latent_settings.of_stage(stage, latent_settings.Asked(workers=1, least_psnr=0.0))
    assert replace(chosen, batch=4) == settings
    made = encode.encode(image_set(4), tmp_path / "out", chosen)
    vae, tokenizer = components.load_vae(chosen.vae), components.load_tokenizer(chosen.tokenizer, 12)
    needed = needed_contract(stage, vae, tokenizer)
    assert made.contract == needed
    assert "text_encoder_sha256" not in made.contract
    other = needed_contract(replace(stage, resolution=16), vae, tokenizer)
    assert manifest.differences(made.contract, other) == [
        "resolution is 8 in the set, 16 is needed",
        "shape is [4, 4, 4] in the set, [4, 8, 8] is needed",
    ]
    with torch.no_grad():
        vae.quant_conv.bias.add_(1)
    assert "vae_sha256 is" in manifest.differences(made.contract, needed_contract(stage, vae, tokenizer))[0]


def test_killed_anywhere_and_run_again_it_ends_in_the_same_bytes(
    image_set: ImageSet, settings: Settings, tmp_path: Path
) -> None:
    images = image_set(*[40] * 6)
    two = replace(settings, workers=2)
    encode.encode(images, tmp_path / "whole", two)
    whole = content(tmp_path / "whole")
    context = multiprocessing.get_context("fork")  # a fork of this process: no seconds of imports

    def make(folder: Path) -> None:
        tqdm.set_lock(threading.RLock())  # its own is shared by forks: one killed while it draws would leave it locked
        encode.encode(images, folder, two)

    random = np.random.default_rng(0)
    unfinished = 0
    for attempt in range(3):
        folder = tmp_path / f"killed-{attempt}"
        for kill in range(2):
            child = context.Process(target=make, args=(folder,))
            child.start()
            assert child.pid
            deadline = time.monotonic() + 60
            while kill == 0 and not (folder / encode.WORK).exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(float(random.uniform(0, 0.25)))
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        unfinished += not (folder / manifest.NAME).exists()
        encode.encode(images, folder, two)
        assert content(folder) == whole
    assert unfinished > 0  # otherwise no kill came early enough to mean anything


def test_finished_shards_are_kept(image_set: ImageSet, settings: Settings, tmp_path: Path) -> None:
    images, out = image_set(5, 5, 5), tmp_path / "out"
    offset = pq.read_table(images / "00001.parquet")["jpg_offset"][2].as_py()
    sound = (images / "00001.tar").read_bytes()
    (images / "00001.tar").write_bytes(sound[:offset] + b"damage" + sound[offset + 6 :])
    with pytest.raises(RunError, match="image 000010002"):
        encode.encode(images, out, settings)
    assert sorted(path.name for path in out.iterdir()) == ["00000.parquet", "00000.tar", "_work"]
    before = (out / "00000.tar").stat().st_mtime_ns
    (images / "00001.tar").write_bytes(sound)
    encode.encode(images, out, settings)
    assert (out / "00000.tar").stat().st_mtime_ns == before
    encode.encode(images, out, settings)  # a finished set
    assert (out / "00000.tar").stat().st_mtime_ns == before
    encode.encode(images, tmp_path / "other", settings)
    assert content(tmp_path / "other") == content(out)


def test_a_shard_that_is_recorded_but_lost_or_cut_is_made_again(
    image_set: ImageSet, settings: Settings, tmp_path: Path
) -> None:
    images, out = image_set(5, 5, 5), tmp_path / "out"
    made = encode.encode(images, out, settings)
    whole = content(out)
    figures = {"psnr": 0.0, "enlarged": 0}  # as a version before the latents' mean and deviation left them
    encode.write_json(out / encode.WORK / encode.SETTINGS, {"contract": made.contract, "lineage": made.lineage})
    for shard in made.shards:
        encode.write_json(out / encode.WORK / f"{shard.name}.json", _recorded(shard) | figures)
    (out / manifest.NAME).unlink()
    encoder = encode.load(settings)
    assert encode.prepare(images, out, settings, encoder).todo == ()
    (out / "00000.tar").unlink()
    os.truncate(out / "00001.tar", 1000)
    (out / "00002.parquet").unlink()
    assert [shard.name for shard in encode.prepare(images, out, settings, encoder).todo] == ["00000", "00001", "00002"]
    encode.encode(images, out, settings)
    assert content(out) == whole


def _recorded(shard: manifest.Shard) -> dict[str, object]:
    return {name: value for name, value in asdict(shard).items() if name != "bucket"}


def test_tars_of_somebody_else_are_not_overwritten(image_set: ImageSet, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.tar").write_bytes(b"mine")
    with pytest.raises(UsageError, match="did not write"):
        encode.encode(image_set(3), tmp_path / "out", settings)
    assert content(tmp_path / "out") == {"00000.tar": b"mine"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resolution": 16}, "resolution is 8 in the set, 16 is needed"),
        ({"text_length": 10}, "text_length is 12 in the set, 10 is needed"),
        ({"batch": 8}, "batch is 4 in the set, 8 is needed"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_an_output_of_other_settings_is_refused(
    image_set: ImageSet, settings: Settings, tmp_path: Path, change: dict[str, int], sentence: str, finished: bool
) -> None:
    images, out = image_set(3), tmp_path / "out"
    made = encode.encode(images, out, settings)
    if not finished:  # as a kill before the manifest leaves it
        (out / encode.WORK).mkdir()
        recorded = {"contract": made.contract, "lineage": made.lineage}
        encode.write_json(out / encode.WORK / encode.SETTINGS, recorded)
        (out / manifest.NAME).unlink()
    before = content(out)
    with pytest.raises(UsageError, match=sentence):
        encode.encode(images, out, replace(settings, **change))
    assert content(out) == before


def test_an_output_of_other_images_is_refused(image_set: ImageSet, settings: Settings, tmp_path: Path) -> None:
    encode.encode(image_set(3), tmp_path / "out", settings)
    with pytest.raises(UsageError, match="images is"):
        encode.encode(image_set(4, name="others"), tmp_path / "out", settings)


def test_unusable_input_is_refused(image_set: ImageSet, settings: Settings, toy: Path, tmp_path: Path) -> None:
    images = image_set(3)
    cases = {
        "not a finished shard set": (tmp_path, settings),
        "holds latents, but images are needed": (toy / "latents", settings),
        "resolution=9 does not divide": (images, replace(settings, resolution=9)),
        "batch=0 must be positive": (images, replace(settings, batch=0)),
        "no such folder": (images, replace(settings, vae="runs/none")),
    }
    for sentence, (source, chosen) in cases.items():
        with pytest.raises(UsageError, match=sentence):
            encode.encode(source, tmp_path / "out", chosen)
    with pytest.raises(UsageError, match="choose another output"):
        encode.encode(images, images, settings)
    assert not (tmp_path / "out").exists()


BUCKETS = ("16x8", "8x16", "16x8")


def in_buckets(folder: Path, buckets: tuple[str, ...]) -> Path:
    made = manifest.read(folder, "images")
    shards = [replace(one, bucket=bucket) for one, bucket in zip(made.shards, buckets, strict=True)]
    manifest.write(folder, replace(made, shards=tuple(shards)))
    return folder


def test_buckets_are_encoded_at_their_sizes_and_read(
    image_set: ImageSet, settings: Settings, toy: Path, tmp_path: Path
) -> None:
    images, out = in_buckets(image_set(5, 4, 3), BUCKETS), tmp_path / "out"
    made = encode.encode(images, out, replace(settings, resolution=0, workers=2))
    assert made.buckets == BUCKETS
    assert made.contract["buckets"] == {"16x8": [4, 4, 8], "8x16": [4, 8, 4]}
    assert not {"shape", "resolution"} & set(made.contract)
    vae = components.load_vae(str(toy / "vae"))
    with LatentSet(str(out)) as latents, images_of.ImageSet(str(images)) as pictures:
        readers = LatentReader([latents]), images_of.ImageReader([pictures], images_of.Framing())
        for shard, bucket in enumerate(BUCKETS):
            rows = np.arange(made.shards[shard].samples)
            picks = Picks(bucket=bucket, sources=rows * 0, shards=rows * 0 + shard, rows=rows)
            of_latents, of_pictures = (read(reader, picks) for reader in readers)
            expected = vae.encode(of_pictures.pixels / 127.5 - 1).latent_dist.parameters
            assert torch.allclose(of_latents.moments.float(), expected, atol=2e-3, rtol=2e-3)
    assert encode.encode(images, out, replace(settings, resolution=0)) == made


def read(reader: Any, picks: Picks) -> Any:
    count = len(picks.rows)
    held = reader.hold(count)
    assert reader.fill(held, 0, 0, picks) == []
    return reader.make(held, 0, picks, Consumed(position=0, samples=count, digest=0, substituted=()), 0.0)


@pytest.mark.parametrize(
    ("buckets", "resolution", "sentence"),
    [
        (("16x8", "8x16"), 8, "have buckets that say their sizes"),
        (("", ""), 0, "has no buckets to say its shapes: give --resolution"),
        (("16x8", ""), 0, "some shards of .* have a bucket and others none"),
        (("16x8", "wide"), 0, "bucket 'wide' of .* is no size such as"),
        (("16x8", "15x8"), 0, "bucket '15x8' of .* does not divide by the autoencoder's 2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    image_set: ImageSet, settings: Settings, tmp_path: Path, buckets: tuple[str, ...], resolution: int, sentence: str
) -> None:
    images = in_buckets(image_set(2, 2), buckets)
    with pytest.raises(UsageError, match=sentence):
        encode.encode(images, tmp_path / "out", replace(settings, resolution=resolution))
    assert not (tmp_path / "out").exists()


def test_a_set_with_states_has_the_empty_caption_s_once(
    image_set: ImageSet, settings: Settings, toy: Path, tmp_path: Path
) -> None:
    images, out = image_set(3, 3), tmp_path / "out"
    chosen = replace(settings, text_encoder=str(toy / "text_encoder"))
    made = encode.encode(images, out, chosen)
    text, tokenizer = (
        components.load_text_encoder(chosen.text_encoder),
        components.load_tokenizer(settings.tokenizer, 12),
    )
    assert made.contract["text_states"] == 16
    assert made.contract["text_encoder_sha256"] == components.weights_sha256(text)
    stored = safetensors.torch.load_file(out / encode.EMPTY)
    ids = components.token_ids(tokenizer, [""])
    assert torch.equal(stored["tokens"].to(torch.int64), ids[0])
    assert torch.equal(stored["states"], text(ids).last_hidden_state[0].half())
    with pytest.raises(UsageError, match="text_states is 16 in the set, None is needed"):
        encode.encode(images, out, settings)
    with pytest.raises(UsageError, match="mirror is False in the set, 'stored' is needed"):
        encode.encode(images, out, replace(chosen, mirrored=True))


def test_a_mean_that_loses_something_leaves_nothing(image_set: ImageSet, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--mean-only would lose something"):
        encode.encode(image_set(3), tmp_path / "out", replace(settings, mean_only=True))
    assert not (tmp_path / "out").exists(), "the same command without it is not refused"


def test_the_figures_of_each_shard_are_in_the_lineage(image_set: ImageSet, settings: Settings, tmp_path: Path) -> None:
    made = encode.encode(image_set(3, 4), tmp_path / "out", settings)
    assert [len(made.lineage[key]) for key in ("psnr_db", "latent_mean", "latent_std")] == [2, 2, 2]
    assert "posterior_spread" not in made.lineage and "text_encoder" not in made.lineage
