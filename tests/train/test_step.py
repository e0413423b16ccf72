"""One optimizer step; with real ranks and DeepSpeed it is compared with plain torch in tests/e2e."""

from collections.abc import Callable

import pytest
import torch
from steps import optimizer_step

from bigdiff.engine.deepspeed import Stepped
from bigdiff.train.run import Run
from bigdiff.train.step import Done, meter, poisoned
from bigdiff.train.task import Losses

MakeRun = Callable[..., Run]


def done(*losses: Losses) -> Done:
    return Done(stepped=Stepped(rate=1.0, norm=torch.tensor(1.0)), losses=losses)


def test_micro_batches_make_the_step_of_the_whole_batch(make_run: MakeRun) -> None:
    run = make_run()
    start, batches = run.engine.partition.masters[0].clone(), next(run.batches)
    assert [len(batch.positions) for batch in batches] == [4, 4]
    found = optimizer_step(run, batches)
    weight = torch.nn.Parameter(start)
    wanted = torch.cat([batch.moments[:, :2].float() for batch in batches])
    loss = (weight.view(2, 4, 4) - wanted).square().mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([weight], 1.0)
    torch.optim.AdamW([weight], lr=0.02).step()
    torch.testing.assert_close(run.engine.partition.masters[0], weight.data)
    torch.testing.assert_close(found.loss, loss.detach())
    assert float(found.stepped.norm) == pytest.approx(float(norm), rel=1e-5)
    assert run.task.begun == [[0, 4]]  # both micro-batches, before the first was computed
    assert not any(one.total.requires_grad or one.per_sample.requires_grad for one in found.losses)


def test_one_broken_sample_leaves_the_weights_of_the_whole_step(make_run: MakeRun) -> None:
    run = make_run()
    run.task.spoiled = {5: float("nan")}
    before = run.engine.partition.masters[0].clone()
    found = optimizer_step(run, next(run.batches))
    assert found.stepped.norm.isnan() and found.loss.isnan()
    assert torch.equal(run.engine.partition.masters[0], before)


def test_the_loss_is_not_finite_when_what_was_minimised_is_not() -> None:
    fine = Losses(total=torch.tensor(3.0), per_sample=torch.tensor([1.0, 3.0]))
    other = Losses(total=torch.tensor(9.0), per_sample=torch.tensor([5.0, 7.0]))
    assert float(done(fine, other).loss) == 4.0  # unweighted: of the samples, not of the totals
    overflown = Losses(total=torch.tensor(float("inf")), per_sample=torch.tensor([1.0, 3.0]))
    assert not done(fine, overflown).loss.isfinite()
    broken = Losses(total=torch.tensor(1.0), per_sample=torch.tensor([1.0, float("nan")]))
    assert done(broken, fine).loss.isnan()


def gradient(total: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The value of `total` of a weight of 0.3 and 0.7, and its gradient."""
    weight = torch.tensor([0.3, 0.7], requires_grad=True)
    value = total(weight)
    value.backward()
    assert weight.grad is not None
    return value.detach(), weight.grad


def test_poison_does_nothing_to_what_is_finite_and_all_to_what_is_not() -> None:
    for scale in (1.0, 1e-30, 1e30):
        plain = gradient(lambda weight, scale=scale: (scale * weight).sum())  # type: ignore[misc]
        same = gradient(lambda weight, scale=scale: poisoned((scale * weight).sum()))  # type: ignore[misc]
        assert all(map(torch.equal, plain, same))
    for offset in (float("inf"), float("-inf"), float("nan")):
        _, clean = gradient(lambda weight, offset=offset: weight.sum() + offset)  # type: ignore[misc]
        assert clean.isfinite().all()  # autograd alone does not notice
        value, spoiled = gradient(lambda weight, offset=offset: poisoned(weight.sum() + offset))  # type: ignore[misc]
        assert not value.isfinite() and not spoiled.isfinite().any()


def test_a_step_that_is_kept_is_counted_once(make_run: MakeRun) -> None:
    run = make_run()
    assert run.meters.empty
    batches = next(run.batches)
    found = optimizer_step(run, batches)
    meter(run, batches, found)
    reading = run.meters.take()
    assert reading.loss == pytest.approx(float(found.loss))
    assert reading.loss_by_bin[0] == pytest.approx(float(found.loss))  # positions 0 to 7 stand for timesteps
    assert reading.loss_by_bin[1:] == (None,) * 9
    shares = [float(one.per_sample.max() / one.per_sample.sum()) for one in found.losses]
    assert reading.terms == {"share": pytest.approx(sum(shares) / 2)}
