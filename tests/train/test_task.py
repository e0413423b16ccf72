import torch

from bigdiff.train.task import Losses


def test_detached_figures_are_the_same_and_keep_no_graph_alive() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    timesteps = torch.tensor([3, 4])
    given = Losses(
        total=weight.mean(),
        per_sample=weight.square(),
        timesteps=timesteps,
        terms={"kl": weight.sum(), "rec": 2 * weight[0]},
    )
    found = given.detached()
    assert found.timesteps is timesteps
    assert found.terms.keys() == given.terms.keys()
    for ours, theirs in zip(
        (found.total, found.per_sample, *found.terms.values()),
        (given.total, given.per_sample, *given.terms.values()),
        strict=True,
    ):
        assert theirs.requires_grad and not ours.requires_grad and ours.grad_fn is None
        assert torch.equal(ours, theirs)
    given.total.backward()  # what was minimised keeps its own
    assert weight.grad is not None


def test_a_task_need_not_have_noise_levels_or_further_terms() -> None:
    found = Losses(total=torch.tensor(1.0), per_sample=torch.ones(3)).detached()
    assert found.timesteps is None and found.terms == {}
