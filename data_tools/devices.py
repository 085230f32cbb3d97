"""The device that a command computes on."""

import re

import torch

from data_tools.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """The device that a `--device` option names; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        UsageError: the name is not one of a device, or this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not available here ({reason})") from None
    return device


def to_device(index: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small tensor on the CPU, copied to `device`.

    A copy from pageable memory would wait until the GPU has finished all queued work; one from pinned memory does
    not.
    """
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)
