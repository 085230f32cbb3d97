"""In which arithmetic the network computes. Boxes, softmaxes and means over regions are float32 always."""

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from data_tools.errors import UsageError

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """Of convolutions and matrix products; weights and stored features do not depend on it."""

    FP32 = "fp32"  # float32 throughout
    TF32 = "tf32"  # float32 with products of 10-bit mantissas, on GPUs that have them
    FP16 = "fp16"
    BF16 = "bf16"

    @contextlib.contextmanager
    def context(self, device: str) -> Iterator[None]:
        """Run what is inside in this arithmetic on a device type; PyTorch's own settings return afterwards."""
        import torch  # not above: the command line knows these names without it

        half = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}.get(self)
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = self is Precision.TF32
        try:
            with torch.autocast(device, dtype=half, enabled=half is not None):
                yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before

    def require(self, device: "torch.device") -> None:
        """Raise `UsageError` where a device does not have this arithmetic."""
        if self is Precision.TF32 and device.type != "cuda":
            raise UsageError(f"--precision tf32 needs a GPU; --device {device} has fp32, bf16 and fp16")
