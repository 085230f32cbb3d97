"""The device that a command computes on."""

import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from data_tools.errors import UsageError, one_line

NVIDIA_FILES = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))  # one is there where a driver is


def resolve_device(name: str) -> torch.device:
    """The device that a `--device` option names; `auto` is the first GPU, or the CPU where there is none.

    Where there is one that PyTorch cannot use, `auto` says so on standard error.

    Raises:
        UsageError: the name is not one of a device, or this machine does not have the device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        _note_unused_gpu()
        return torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not available here ({reason})") from None
    return device


def _note_unused_gpu() -> None:
    """Say why an NVIDIA GPU of this machine is not used, unless the user has hidden it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or not any(file.exists() for file in NVIDIA_FILES):
        return
    try:
        torch.cuda.init()
        reason = "it finds none"
    except (RuntimeError, AssertionError) as error:  # the driver is too old, or this PyTorch is made without CUDA
        reason = one_line(error).rstrip(".")
    print(
        f"note: this machine has an NVIDIA GPU, which PyTorch cannot use ({reason}); --device auto takes the CPU; "
        "fix: a driver or a PyTorch that fit one another",
        file=sys.stderr,
        flush=True,
    )


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on `device`.

    A copy from pageable memory to a GPU would wait until it has finished all queued work; one from pinned memory
    does not.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors on the CPU; those on a GPU are copied together, and the host waits once.

    They come by pinned memory, of which there is little, so the results are copies in ordinary memory.
    """
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return [copy.clone() for copy in copies] if devices else copies


def runs_triton(device: torch.device, trial: Callable[[], object], what: str) -> bool:
    """Whether a kernel of Triton compiles and runs on a device: Triton needs a C compiler for that.

    Args:
        device: of compute capability 8.0 at least.
        trial: starts the kernel on small tensors.
        what: is slower without the kernel, for the warning that says why it does not run.
    """
    if device.type != "cuda" or torch.version.cuda is None or find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        trial()
    except Exception as error:
        warnings.warn(f"{what} runs without its GPU kernel and is slower: {error}", stacklevel=2)
        return False
    return True
