import numpy as np
import pytest
from safetensors.numpy import load

from bigdiff.data.member import Form, layout, pack


@pytest.mark.parametrize(("shape", "length"), [((8, 64, 64), 77), ((16, 4, 4), 32), ((2, 1, 3), 1)])
def test_stock_safetensors_opens_a_member_where_the_layout_says(shape: tuple[int, int, int], length: int) -> None:
    random = np.random.default_rng(0)
    moments = random.normal(size=shape).astype(np.float16)
    tokens = random.integers(0, 49408, length).astype(np.uint16)
    content = pack(moments, tokens)
    stored = load(content)
    assert np.array_equal(stored["moments"], moments)
    assert np.array_equal(stored["tokens"], tokens)
    places = layout(*shape, length)
    assert len(content) == places.total
    assert content[places.moments] == moments.tobytes()
    assert content[places.tokens] == tokens.tobytes()
    assert places.moments.start % 8 == 0


def test_text_states_lie_behind_the_tokens() -> None:
    random = np.random.default_rng(1)
    moments, states = (random.normal(size=size).astype(np.float16) for size in ((8, 4, 4), (5, 16)))
    tokens = random.integers(0, 49408, 5).astype(np.uint16)
    content = pack(moments, tokens, states)
    assert np.array_equal(load(content)["states"], states)
    places = layout(8, 4, 4, 5, 16)
    assert len(content) == places.total and content[places.states] == states.tobytes()
    assert content[places.tokens] == tokens.tobytes()


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("states", [0, 16])
def test_mirrored_copies_lie_at_the_end_and_a_mean_has_its_name(mean: bool, states: int) -> None:
    random = np.random.default_rng(2)
    stored, mirrored = (random.normal(size=(4, 3, 5)).astype(np.float16) for _ in range(2))
    tokens, text = np.arange(5, dtype=np.uint16), random.normal(size=(5, states)).astype(np.float16)
    content = pack(stored, tokens, text if states else None, mirrored, mean)
    found = load(content)
    assert set(found) == {"mean" if mean else "moments", "tokens", "mirrored"} | ({"states"} if states else set())
    assert np.array_equal(found["mirrored"], mirrored)
    assert np.array_equal(found["mean" if mean else "moments"], stored)
    places = layout(4, 3, 5, 5, states, Form(mean=mean, mirrored=True))
    assert len(content) == places.total and places.mean is mean
    assert content[places.mirrored] == mirrored.tobytes()
    assert content[places.moments] == stored.tobytes()
    assert content[places.states] == text.tobytes()


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("crops", [3, 9])
def test_other_crops_lie_behind_all_else_and_mirrored_last(mean: bool, flipped: bool, crops: int) -> None:
    random = np.random.default_rng(3)
    stored, mirrored = (random.normal(size=(4, 3, 5)).astype(np.float16) for _ in range(2))
    others = [random.normal(size=(crops - 1, 4, 3, 5)).astype(np.float16) for _ in range(1 + flipped)]
    content = pack(stored, np.arange(5, dtype=np.uint16), None, mirrored if flipped else None, mean, others)
    found = load(content)
    expected = {"mirrored": mirrored, "mirrored_crops": others[-1]} if flipped else {}
    expected |= {"mean" if mean else "moments": stored, "crops": others[0], "tokens": np.arange(5)}
    assert set(found) == set(expected)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    places = layout(4, 3, 5, 5, 0, Form(mean=mean, mirrored=flipped, crops=crops))
    assert len(content) == places.total and places.boxes == crops
    assert content[places.crops] == others[0].tobytes()
    assert content[places.mirrored_crops] == (others[1].tobytes() if flipped else b"")
    assert content[places.mirrored] == (mirrored.tobytes() if flipped else b"")
    assert f"of {crops} crops" in places.stored


def test_a_member_without_other_crops_has_the_header_it_always_had() -> None:
    header = (
        b'{"mean":{"dtype":"F16","shape":[2,1,1],"data_offsets":[0,4]},'
        b'"tokens":{"dtype":"U16","shape":[3],"data_offsets":[4,10]},'
        b'"states":{"dtype":"F16","shape":[3,1],"data_offsets":[10,16]},'
        b'"mirrored":{"dtype":"F16","shape":[2,1,1],"data_offsets":[16,20]}}'
    )
    places = layout(2, 1, 1, 3, 1, Form(mean=True, mirrored=True))
    assert places.header[8:].rstrip() == header and places.total == len(places.header) + 20
    assert places.crops == places.mirrored_crops == slice(places.total, places.total)
    assert layout(2, 1, 1, 3, 1, Form(mean=True, mirrored=True, crops=1)) == places


@pytest.mark.parametrize(
    "crops",
    [
        [np.zeros((2, 2, 2, 1), np.float16)],
        [np.zeros((2, 2, 1, 2), np.float32)],
        [np.zeros((2, 2, 1, 2), np.float16)] * 2,
    ],
)
def test_other_crops_of_another_shape_type_or_number_are_refused(crops: list[np.ndarray]) -> None:
    with pytest.raises(AssertionError):
        pack(np.zeros((2, 1, 2), np.float16), np.zeros(3, np.uint16), crops=crops)


def test_a_plain_member_has_the_bytes_it_always_had() -> None:
    content = pack(np.zeros((2, 1, 1), np.float16), np.zeros(3, np.uint16))
    header = (
        b'{"moments":{"dtype":"F16","shape":[2,1,1],"data_offsets":[0,4]},'
        b'"tokens":{"dtype":"U16","shape":[3],"data_offsets":[4,10]}}'
    )
    padded = header + b" " * (-len(header) % 8)
    assert content == len(padded).to_bytes(8, "little") + padded + bytes(10)
    places = layout(2, 1, 1, 3)
    assert places.mirrored == places.states == slice(places.total, places.total)


def test_a_mirrored_copy_of_another_shape_is_refused() -> None:
    with pytest.raises(AssertionError):
        pack(
            np.zeros((2, 1, 2), np.float16),
            np.zeros(3, np.uint16),
            mirrored=np.zeros((2, 2, 1), np.float16),
        )


def test_other_types_are_refused() -> None:
    with pytest.raises(AssertionError):
        pack(np.zeros((2, 1, 1), np.float32), np.zeros(3, np.uint16))  # type: ignore[arg-type]
