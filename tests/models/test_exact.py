import torch

from bigdiff.models.exact import choose, exact


def test_products_are_exact_inside_and_as_before_outside() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with exact():
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
            assert not torch.is_grad_enabled()
        assert torch.backends.cudnn.allow_tf32 and torch.is_grad_enabled()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_the_device_is_one_that_is_there() -> None:
    assert torch.zeros(1, device=choose()).sum() == 0
