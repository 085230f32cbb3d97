"""In which arithmetic PyTorch computes the products of float32 numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch


def _switches() -> list[Any]:
    """Each with `fp32_precision`, the general one before those that follow it unless they are set themselves.

    oneDNN's general one is absent: PyTorch's setter of it sets that of all backends.
    """
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn  # PyTorch's stubs lack some of their switches
    of_operators = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return [torch.backends, cudnn, *of_operators]


@contextmanager
def float32_products(kind: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Within the body, products of float32 numbers are what they say, or rounded to TF32 on GPUs that have it.

    By default cuDNN rounds the operands of convolutions and recurrent networks to TF32. Afterwards all switches
    are as they were: one that follows another is not set, so that it still does.

    >>> with float32_products("ieee"):
    ...     torch.backends.cudnn.rnn.fp32_precision
    'ieee'
    """
    changed = []
    try:
        for switch in _switches():
            before = switch.fp32_precision
            if before != kind:
                switch.fp32_precision = kind
                changed.append((switch, before))
        yield
    finally:
        for switch, before in reversed(changed):
            switch.fp32_precision = before
