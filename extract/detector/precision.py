"""In which arithmetic the network computes. Boxes, softmaxes and means over regions are always float32."""

import contextlib
from collections.abc import Iterator

import torch

from data_tools.arithmetic import float32_products
from data_tools.errors import UsageError
from extract.choices import Precision

HALF_TYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
"""The types to which autocast converts what convolutions and matrix products take."""


@contextlib.contextmanager
def precision_context(precision: Precision, device_type: str) -> Iterator[None]:
    """Run the body in this arithmetic on `cpu` or `cuda`; PyTorch's own settings are restored afterwards.

    >>> with precision_context(Precision.BF16, "cpu"):
    ...     (torch.ones(2, 3) @ torch.ones(3, 4)).dtype
    torch.bfloat16
    """
    half = HALF_TYPES.get(precision)
    with (
        float32_products("tf32" if precision is Precision.TF32 else "ieee"),
        torch.autocast(device_type, dtype=half, enabled=half is not None),
    ):
        yield


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise `UsageError` where a device does not have this arithmetic."""
    if precision is Precision.TF32 and device.type != "cuda":
        raise UsageError(f"--precision tf32 needs a GPU; --device {device} has fp32, bf16 and fp16")
