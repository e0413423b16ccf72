import numpy as np
import pytest
from safetensors.numpy import load

from bigdiff.data.member import layout, pack


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


def test_other_types_are_refused() -> None:
    with pytest.raises(AssertionError):
        pack(np.zeros((2, 1, 1), np.float32), np.zeros(3, np.uint16))  # type: ignore[arg-type]
