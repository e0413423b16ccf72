from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bigdiff.config.load import load_stage
from bigdiff.evaluate.validation import Frozen, Network, Sums, scores, term_scores
from bigdiff.models import components
from bigdiff.models.denoiser import Denoiser


def test_means_and_errors_are_numpys_by_bin_and_of_the_stratified_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    losses, timesteps = torch.rand(300, generator=generator), torch.randint(0, 1000, (300,), generator=generator)
    found = scores(Sums.none().plus(losses, timesteps, 1000), "_ema")
    assert found["validation/loss_ema"] == pytest.approx(losses.double().mean().item(), rel=1e-12)
    variance = 0.0
    for number in range(10):
        own = losses[timesteps // 100 == number].double().numpy()
        assert found[f"validation/loss_ema_t/{number}"] == pytest.approx(own.mean(), rel=1e-12)
        error = own.std(ddof=1) / np.sqrt(len(own))
        assert found[f"validation/error_ema_t/{number}"] == pytest.approx(error, rel=1e-9)
        variance += (len(own) / 300) ** 2 * error**2
    assert found["validation/error_ema"] == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_parts_add_up_to_the_whole_and_empty_bins_say_nothing() -> None:
    losses, timesteps = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([5, 7, 999])
    whole = Sums.none().plus(losses, timesteps, 1000)
    parts = [Sums.none().plus(losses[at : at + 1], timesteps[at : at + 1], 1000) for at in range(3)]
    assert Sums.of_all(parts) == whole
    found = scores(whole)
    assert {name for name in found if "_t/" in name} == {
        f"validation/{kind}_t/{number}" for kind in ("loss", "error") for number in (0, 9)
    }
    assert found["validation/error_t/9"] == 0.0  # of one sample nothing is known


def test_terms_are_summed_beside_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    loss, psnr = torch.rand(50, generator=generator), torch.rand(50, generator=generator)
    parts = [Sums.by_term([loss[some], psnr[some]]) for some in (slice(0, 20), slice(20, 50))]
    found = term_scores(Sums.of_all(parts), ("loss", "psnr"), "_ema")
    assert list(found) == [f"validation/{name}_ema" for name in ("loss", "error", "psnr", "error_psnr")]
    assert found["validation/loss_ema"] == pytest.approx(loss.double().mean().item(), rel=1e-12)
    error = psnr.double().numpy().std(ddof=1) / np.sqrt(50)
    assert found["validation/error_psnr_ema"] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("options", [(), ("model.text.train=true",), ("model.frozen=[unet.down_blocks.*]",)])
def test_given_weights_predict_as_the_network_that_has_them(toy: Path, options: tuple[str, ...]) -> None:
    stage = load_stage(str(toy / "stage.yaml"), list(options))
    torch.manual_seed(1)
    assert stage.model.text is not None
    unet = components.build_unet(stage.model.unet, stage.latent_size)
    denoiser = Denoiser(unet, components.load_text_encoder(stage.model.text.encoder), stage.model.text.train)
    denoiser.freeze(stage.model.frozen)
    network = Network(stage, Frozen.of(denoiser))
    with torch.no_grad():  # trained on since
        for parameter in denoiser.trained().values():
            parameter.add_(0.01)
    noisy, timesteps = torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    tokens = torch.tensor([[49406, *range(300, 310), 49407]] * 3)
    weights = network.prepared({name: one.detach() for name, one in denoiser.trained().items()}, half=False)
    with torch.no_grad():
        wanted = denoiser(noisy, timesteps, tokens)
        assert torch.equal(network.predict(weights, noisy, timesteps, tokens), wanted)
        states = denoiser.states(tokens)
        assert torch.equal(network.predict(weights, noisy, timesteps, states), wanted)
        half = network.prepared({name: one.detach() for name, one in denoiser.trained().items()}, half=True)
        rounded = network.predict(half, noisy, timesteps, tokens)
    assert rounded.dtype == torch.bfloat16
    assert 0 < float((rounded.float() - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_the_weights_that_are_given_last_count(trained: Callable[..., Denoiser], toy: Path, tmp_path: Path) -> None:
    stage, denoiser = load_stage(str(toy / "stage.yaml")), trained(tmp_path)
    network = Network(stage, Frozen.of(denoiser))
    weights = network.prepared({name: one.detach() for name, one in denoiser.trained().items()}, half=False)
    noisy, tokens = torch.randn(1, 2, 4, 4), torch.tensor([[49406, *range(300, 310), 49407]])
    with torch.no_grad():
        first = network.predict(weights, noisy, torch.tensor([5]), tokens)
        weights["unet.conv_out.bias"] = weights["unet.conv_out.bias"] + 1
        second = network.predict(weights, noisy, torch.tensor([5]), tokens)
    torch.testing.assert_close(second, first + 1)
