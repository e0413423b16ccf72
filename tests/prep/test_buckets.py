import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.config.prep import Pack
from bigdiff.prep.buckets import Fit, are_whole, fit, name, nearest, parse, shapes

SIX = Pack(resolution=512, bucket_step=64)


def test_the_shapes_of_512_pixels_in_steps_of_64() -> None:
    assert shapes(SIX) == ((640, 384), (576, 448), (512, 512), (448, 576), (384, 640))
    assert shapes(Pack(resolution=512)) == ((512, 512),)


@given(st.integers(1, 24), st.sampled_from([8, 32, 64]), st.floats(1.0, 5.0))
def test_every_shape_keeps_the_area_the_step_and_the_aspect_and_its_mirror(times: int, step: int, most: float) -> None:
    side = times * step
    found = shapes(Pack(resolution=side, bucket_step=step, bucket_max_aspect=most))
    assert (side, side) in found
    assert len(set(found)) == len(found)
    for width, height in found:
        assert width % step == 0 == height % step
        assert width * height <= side * side
        assert max(width, height) <= most * min(width, height)
        assert (height, width) in found


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_nearest_shape_is_the_nearest(width: int, height: int) -> None:
    chosen = nearest(shapes(SIX), width, height)

    def off(shape: tuple[int, int]) -> float:
        return abs(math.log(width / height) - math.log(shape[0] / shape[1]))

    assert off(chosen) == pytest.approx(min(map(off, shapes(SIX))))


def test_a_set_s_fit_is_that_of_its_settings() -> None:
    assert fit(SIX) == Fit(shapes=shapes(SIX))
    assert fit(Pack(resolution=96)) == Fit(shapes=((96, 96),))
    assert fit(Pack(resolution=96, crop="none")) == Fit(shapes=((96, 96),), whole=True)
    assert are_whole({"crop": "none"})
    assert not are_whole({"crop": "centre square"}) and not are_whole({})


def test_names_come_back() -> None:
    assert name((640, 384)) == "640x384"
    assert parse("640x384") == (640, 384)
