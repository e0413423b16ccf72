"""Where scorers compute, and how exactly: float32 without TF32, so that processors agree to about 1e-5."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def choose() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def exact() -> Iterator[None]:
    """No gradients; products and convolutions in whole float32 (cuDNN's default rounds inputs to ten bits)."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32, convolution.allow_tf32 = False, False
    try:
        with torch.inference_mode():
            yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
