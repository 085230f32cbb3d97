"""Processes that read ahead of a training: how many have room for what they read, and what if one dies."""

import os
import shutil
import sys
from functools import cache
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # where PyTorch's processes hand tensors over; a container has 64 MB of it
AHEAD = 3  # items of a worker that are there at a time: two read ahead, one in use


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fitting_workers(wanted: int, item_bytes: int) -> int:
    """How many processes there are cores and shared memory for; a note says so where that is fewer than wanted.

    Without enough shared memory PyTorch waits for ever or is killed by the system.

    Args:
        wanted: number of processes; 0 reads in the calling process.
        item_bytes: of the largest item that a process hands over.
    """
    cores = usable_cores()
    if wanted > cores:
        _note(f"{wanted} workers on {cores} cores; using {cores}")
        wanted = cores
    if not wanted or not SHARED_MEMORY.is_dir():
        return wanted
    free = shutil.disk_usage(SHARED_MEMORY).free
    fitting = min(wanted, free // (AHEAD * max(item_bytes, 1)))
    if fitting < wanted:
        needed = wanted * AHEAD * item_bytes
        _note(
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB left, {wanted} workers need {needed / 1e6:.0f} MB; "
            f"using {fitting} (a container gets more with --shm-size)"
        )
    return fitting


@cache  # once, though every epoch has new workers
def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def worker_death(error: BaseException) -> str:
    """What to tell the user of an error that PyTorch raises because a worker died; empty for any other error.

    PyTorch raises it wherever the main thread happens to be, so this is for the outermost handler.
    """
    text = str(error)
    died = "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text)
    if not died and type(error).__name__ != "ProcessExitedException":
        return ""
    reason = text.split(". ")[0].split("\n")[0].rstrip(".")
    return (
        f"a process that works for this one died, perhaps for lack of memory ({reason}); fix: continue with fewer "
        "workers, or with smaller batches (what was written before is kept)"
    )
