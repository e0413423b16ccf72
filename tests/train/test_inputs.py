from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from bigdiff.data.damage import Consumed
from bigdiff.data.images import Framing, ImageBatch, boxed
from bigdiff.data.latents import Batch
from bigdiff.data.member import Form, layout, pack
from bigdiff.models.encoders import text_states
from bigdiff.runtime import seeding
from bigdiff.train.inputs import Captions, Encoded, Latents, Pixels

EMPTY = torch.tensor([1] + [2] * 11)


def batch(count: int, width: int = 0) -> Batch:
    """Moments, tokens and, with a `width`, text states, as a latent set stores them."""
    random = torch.Generator().manual_seed(0)
    moments = torch.randn(count, 4, 4, 4, generator=random).half().numpy()
    tokens = (np.arange(count) + 5).astype(np.uint16)
    states = torch.randn(count, 12, width, generator=random).half().numpy() if width else [None] * count
    members = [pack(moments[row], np.repeat(tokens[row], 12), states[row]) for row in range(count)]
    return Batch(
        raw=torch.frombuffer(bytearray(b"".join(members)), dtype=torch.uint8).view(count, -1),
        layout=layout(4, 4, 4, 12, width),
        bucket="",
        positions=torch.arange(1000, 1000 + count),
        consumed=consumed(count),
        wait_seconds=0.0,
    )


def consumed(count: int) -> Consumed:
    return Consumed(position=1000, samples=count, digest=0, substituted=())


def captions(dropout: float, empty: torch.Tensor = EMPTY) -> Captions:
    return Captions(seed=3, dropout=dropout, tokenizer=None, empty=empty)  # type: ignore[arg-type] # ids are stored


def test_latents_are_a_scaled_posterior_sample() -> None:
    given, latents = batch(5), Latents(seed=3, scaling_factor=0.5)
    drawn = latents.clean(given)
    stored = DiagonalGaussianDistribution(given.moments.float())
    noise = seeding.normal(3, "posterior", given.positions, (2, 4, 4))
    torch.testing.assert_close(drawn, (stored.mean + stored.std * noise) * 0.5)
    again = latents.clean(replace(given, positions=given.positions + 96))  # the next visit draws anew
    assert not torch.equal(drawn, again)


def test_mirrored_latents_are_picked_where_pictures_would_be_mirrored() -> None:
    random = torch.Generator().manual_seed(1)
    stored, mirrored = (torch.randn(64, 4, 4, 4, generator=random).half() for _ in range(2))
    tokens = np.zeros(12, np.uint16)
    members = [pack(one.numpy(), tokens, None, other.numpy()) for one, other in zip(stored, mirrored, strict=True)]
    raw = torch.frombuffer(bytearray(b"".join(members)), dtype=torch.uint8).view(64, -1)
    given = replace(batch(64), raw=raw, layout=layout(4, 4, 4, 12, 0, Form(mirrored=True)))
    frames = Framing(resolution=8, flip=0.3, seed=3).frames("", 1000, 64)
    flipped = torch.tensor([frame.mirrored for frame in frames])
    assert 0 < int(flipped.sum()) < 40
    picked = Latents(seed=3, scaling_factor=0.5, flip=0.3).moments(given)
    assert torch.equal(picked[flipped], mirrored[flipped]) and torch.equal(picked[~flipped], stored[~flipped])
    assert torch.equal(Latents(seed=3, scaling_factor=0.5).moments(given), stored)
    assert torch.equal(Latents(seed=3, scaling_factor=0.5, flip=1.0).moments(given), mirrored)


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("flip", [0.0, 0.3])
def test_stored_crops_are_picked_where_pictures_would_be_cropped(count: int, flip: float) -> None:
    random = torch.Generator().manual_seed(1)
    boxes = torch.randn(2, 400, count, 4, 4, 4, generator=random).half()  # plain and mirrored
    middle, others = count // 2, [box for box in range(count) if box != count // 2]
    members = [
        pack(boxes[0, row, middle].numpy(), np.zeros(12, np.uint16), None, boxes[1, row, middle].numpy(), False,
             [boxes[0, row, others].numpy(), boxes[1, row, others].numpy()])
        for row in range(400)
    ]  # fmt: skip
    raw = torch.frombuffer(bytearray(b"".join(members)), dtype=torch.uint8).view(400, -1)
    given = replace(batch(400), raw=raw, layout=layout(4, 4, 4, 12, 0, Form(mirrored=True, crops=count)))
    frames = Framing(resolution=8, crop="random", flip=flip, seed=3).frames("", 1000, 400)
    across = [frame.across * count >> 32 for frame in frames if frame.across is not None]
    flips = [int(frame.mirrored) for frame in frames]
    picked = Latents(seed=3, scaling_factor=0.5, flip=flip, crop=True).moments(given)
    assert torch.equal(picked, boxes[flips, torch.arange(400), across])
    centre = Latents(seed=3, scaling_factor=0.5, flip=flip).moments(given)
    assert torch.equal(centre, boxes[flips, torch.arange(400), middle]), "without data.crop=random"


def test_boxes_are_drawn_evenly_and_anew_at_each_visit() -> None:
    drawn = boxed(3, torch.arange(90_000), 9)
    assert torch.bincount(drawn).tolist() == pytest.approx([10_000] * 9, rel=0.04)  # 4 standard deviations
    again = torch.bincount(9 * drawn[:45_000] + drawn[45_000:])
    assert again.tolist() == pytest.approx([45_000 / 81] * 81, rel=0.2), "of two visits every pair is as likely"
    assert not torch.equal(boxed(4, torch.arange(90_000), 9), drawn)
    assert set(boxed(3, torch.arange(90_000), 1).tolist()) == {0}


def test_a_stored_mean_is_the_sample() -> None:
    means = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1)).half()
    members = [pack(one.numpy(), np.zeros(12, np.uint16), mean=True) for one in means]
    raw = torch.frombuffer(bytearray(b"".join(members)), dtype=torch.uint8).view(5, -1)
    given = replace(batch(5), raw=raw, layout=layout(2, 4, 4, 12, 0, Form(mean=True)))
    assert torch.equal(Latents(seed=3, scaling_factor=0.5).clean(given), means.float() * 0.5)


def test_captions_drop_at_the_configured_rate_by_position() -> None:
    given = batch(4000)
    kept = captions(0.3).text(given)
    dropped = (kept == EMPTY).all(dim=1)
    assert torch.equal(kept[~dropped], given.tokens[~dropped])
    assert dropped.double().mean() == pytest.approx(0.3, abs=0.03)
    half = captions(0.3).text(replace(given, raw=given.raw[2000:], positions=given.positions[2000:]))
    assert torch.equal(half, kept[2000:])
    other = captions(0.3).text(replace(given, positions=given.positions + 4000))
    assert not torch.equal((other == EMPTY).all(dim=1), dropped)


def test_stored_states_drop_to_the_empty_caption_s_where_tokens_would() -> None:
    given, empty = batch(400, width=6), torch.full((12, 6), 7.0).half()
    states = captions(0.3, empty).text(given)
    assert states.dtype == torch.float16 and states.shape == (400, 12, 6)
    dropped = (captions(0.3).text(given) == EMPTY).all(dim=1)
    assert 0 < int(dropped.sum()) < 400
    assert torch.equal(states[dropped], empty.expand(int(dropped.sum()), -1, -1))
    assert torch.equal(states[~dropped], given.states[~dropped])


class Encoder:
    """A small CLIP text model, which remembers how many captions it was given."""

    def __init__(self, device: str = "cpu") -> None:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        with torch.device(device):
            self.network = CLIPTextModel(CLIPTextConfig(vocab_size=1000, **sizes)).eval()
        self.given: list[int] = []

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.given.append(len(tokens))
        return text_states(self.network, tokens)


def at(position: int, count: int) -> Batch:
    """A micro-batch that stands there in the run."""
    return replace(
        batch(count),
        positions=torch.arange(position, position + count),
        consumed=Consumed(position=position, samples=count, digest=0, substituted=()),
    )


@pytest.mark.parametrize("position", [0, 2**31 - 100, 2**32 - 100, 2**40])
def test_the_host_keeps_what_the_device_does_not_drop(position: int) -> None:
    given, drawn = at(position, 400), captions(0.3)
    rows = torch.arange(400)[(drawn.text(given) != EMPTY).any(dim=1)]
    assert 0 < len(rows) < 400 and torch.equal(drawn.kept(given), rows)
    # on a device torch draws, or kernels that are held against it
    words = seeding.by_torch((3, 0), seeding.PURPOSES["text_dropout"], given.positions, 1)
    assert torch.equal(seeding.bits(3, "text_dropout", given.positions, 4), words)


@pytest.mark.parametrize(("position", "kept"), [(1, [0, 1, 2]), (5, [0, 2]), (10, [0]), (14, [])])
def test_dropped_captions_are_not_encoded_and_have_the_empty_one_s_states(position: int, kept: list[int]) -> None:
    given, encoder, found = at(position, 3), Encoder(), captions(0.5)
    assert found.kept(given).tolist() == kept
    plain = encoder(found.text(given))
    skipping = Encoded(captions=found, encode=encoder, empty=encoder(EMPTY[None])[0])
    encoder.given.clear()
    states = skipping.text(given)
    assert encoder.given == ([len(kept)] if kept else [])
    torch.testing.assert_close(states, plain, rtol=0, atol=1e-6)
    assert not states.requires_grad and plain.requires_grad
    assert torch.equal(Encoded(captions=found, encode=encoder, empty=None).text(given), plain)
    assert encoder.given[-1] == 3


def test_the_host_waits_for_no_device() -> None:
    """A tensor on the meta device has no value to ask for: reading one is an error."""
    meta, encoder = torch.device("meta"), Encoder("meta")
    empty = encoder(EMPTY[None].to(meta))[0]
    found = Encoded(captions=captions(0.5, EMPTY.to(meta)), encode=encoder, empty=empty)
    for position in (1, 5, 10, 14):
        states = found.text(at(position, 3).to(meta))
        assert states.shape == (3, 12, 16) and states.device == meta
    assert encoder.given == [1, 3, 2, 1]


def test_pixels_are_in_range_and_grey_is_pillow_s() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    given = ImageBatch(
        pixels=torch.from_numpy(levels).permute(0, 3, 1, 2),
        captions=("", ""),
        keys=("a", "b"),
        bucket="",
        positions=torch.arange(2),
        consumed=consumed(2),
        wait_seconds=0.0,
    )
    coloured = Pixels(grey=False).clean(given)
    assert torch.equal(coloured, given.pixels.float() / 127.5 - 1) and coloured.min() >= -1 and coloured.max() <= 1
    grey = (Pixels(grey=True).clean(given) + 1) * 127.5
    for row in range(2):
        stock = np.asarray(Image.fromarray(levels[row]).convert("L")).astype(float)
        assert np.abs(grey[row, 0].numpy() - stock).max() <= 0.51  # Pillow rounds
