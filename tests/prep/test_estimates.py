import pytest

from bigdiff.data.manifest import Manifest, Shard
from bigdiff.prep import estimates
from bigdiff.prep.estimates import Group, encode_flop, gpu_hours, groups, latent_bytes, train_flop


def test_the_counted_sizes_are_met_and_others_lie_near_their_counts() -> None:
    assert encode_flop(256 * 256) == pytest.approx(273e9)
    assert encode_flop(512 * 512) == pytest.approx(1_117e9)
    assert encode_flop(1024 * 1024) == pytest.approx(4_879e9, rel=0.003)  # counted, and not fitted
    assert train_flop(256 * 256) == pytest.approx(537e9 + 13.3e9)
    assert train_flop(512 * 512) == pytest.approx(2_407e9 + 13.3e9)


def test_a_picture_of_another_shape_and_the_same_pixels_costs_the_same() -> None:
    assert encode_flop(640 * 384) < encode_flop(512 * 512)
    assert train_flop(1024 * 256) == train_flop(512 * 512)


def test_latents_are_an_eighth_a_side_in_eight_channels_of_two_bytes() -> None:
    assert latent_bytes(512, 512) == 64 * 64 * 8 * 2 + 154 == 65_690
    assert latent_bytes(256, 256) == 32 * 32 * 8 * 2 + 154
    assert latent_bytes(640, 384) == 80 * 48 * 8 * 2 + 154


def test_hours_of_a_gpu() -> None:
    assert gpu_hours(3600 * 100.0, utilisation=0.5, peak=100.0) == 2.0
    million = gpu_hours(1e6 * train_flop(512 * 512))
    assert million == pytest.approx(1e6 * 2.4203e12 / (0.35 * 989e12) / 3600)
    assert gpu_hours(1e15, utilisation=0.7) == pytest.approx(gpu_hours(1e15, utilisation=0.35) / 2)


def shard(number: int, samples: int, bucket: str = "") -> Shard:
    return Shard(name=f"{number:05d}", samples=samples, bytes=1_000_000, sha256="0", bucket=bucket)


def test_samples_are_counted_by_bucket_or_by_the_one_resolution() -> None:
    plain = Manifest(kind="images", shards=(shard(0, 3), shard(1, 4)), contract={"resolution": 96})
    assert groups(plain) == (Group(width=96, height=96, samples=7),)
    mixed = (shard(0, 3, "640x384"), shard(1, 4, "384x640"), shard(2, 5, "640x384"))
    assert groups(Manifest(kind="images", shards=mixed, contract={"resolution": 512})) == (
        Group(width=384, height=640, samples=4),
        Group(width=640, height=384, samples=8),
    )


def test_the_page_says_what_is_assumed() -> None:
    made = Manifest(kind="images", shards=(shard(0, 1_000_000),), contract={"resolution": 512})
    page = estimates.written(made)
    for said in ("65.7 GB", "65,690 bytes a sample", "1,117 GFLOP", "2,420 GFLOP", "0.896 GPU-hours", "1.94 GPU-hours"):
        assert said in page, said
    assert "Estimates, not measurements" in page
    assert "35% of its 989 TFLOP/s" in page


def test_of_whole_pictures_the_latents_are_of_a_square_and_of_each_crop_again() -> None:
    made = Manifest(kind="images", shards=(shard(0, 1_000_000),), contract={"resolution": 512, "crop": "none"})
    page = estimates.written(made)
    assert groups(made) == (Group(width=512, height=512, samples=1_000_000),)
    assert page.count("of the centre square, N times that with --crops N") == 2
    square = estimates.written(Manifest(kind="images", shards=made.shards, contract={"resolution": 512}))
    assert "--crops" not in square
    assert page.replace("; of the centre square, N times that with --crops N", "") == square
