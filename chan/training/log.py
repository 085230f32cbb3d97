"""What a run measures on its way: JSON lines for programs, TensorBoard events for eyes.

metrics.jsonl has two kinds of line: `"kind": "train"` every few steps (step, epoch, loss, lr, pairs_per_s)
and `"kind": "dev"` after every epoch (step, epoch, rsum, i2t, t2i). TensorBoard shows the same numbers.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from data_tools.files import read_text, replace_file


class Metrics:
    """Writes both, continuing after step `step` of an earlier run; what that run wrote later is dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "metrics.jsonl"
        if path.is_file():
            kept = [line for line in read_text(path).splitlines() if _step(line) <= step]
            replace_file(path, "".join(f"{line}\n" for line in kept).encode())
        self._lines = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish both files."""
        self._lines.close()
        self._events.close()

    def write(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Record numbers, nested by name, at a step of an epoch counted from 0."""
        line = {"kind": kind, "step": step, "epoch": epoch, **values}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in _flat(kind, values):
            self._events.add_scalar(name, value, step)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a crash cut off


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        full = f"{prefix}/{name}"
        flat.extend(_flat(full, value) if isinstance(value, dict) else [(full, value)])
    return flat
