"""What a run measures while it trains, as JSON lines for programs and TensorBoard events for people.

metrics.jsonl has two kinds of line: `"kind": "train"` every few steps (step, epoch, loss, lr, pairs_per_s)
and `"kind": "dev"` after every epoch (step, epoch, rsum, i2t, t2i, chance). Epochs are counted from 1. The events
hold the same numbers.
"""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from data_tools.errors import reading
from data_tools.files import read_text, replace_file


class TrainingLog:
    """Writes the metrics of a run; a resumed run continues the files of the earlier one.

    Args:
        folder: the run folder.
        step: how many steps the saved state has; later lines, which the resumed run will repeat, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "metrics.jsonl"
        if path.is_file():
            kept = [line for line in read_text(path).splitlines() if _step_of(line) <= step]
            replace_file(path, "".join(f"{line}\n" for line in kept).encode())
        self._lines = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def close(self) -> None:
        """Write what is buffered and close both files."""
        self._lines.close()
        self._events.close()

    def write(self, kind: str, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Record numbers, nested by name, at a step of an epoch counted from 0."""
        line = {"kind": kind, "step": step, "epoch": epoch + 1, **values}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in _flat(kind, values):
            self._events.add_scalar(name, value, step)


def load_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; none where it has no such file.

    Raises:
        InputError: a line is no object with `kind`, `step` and numbers.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    with reading(path, "not lines of metrics"):
        for text in read_text(path).splitlines():
            line = json.loads(text)
            numbers = ("step", "loss") if line["kind"] == "train" else ("step", "rsum")
            lines.append({**line, **{name: float(line[name]) for name in numbers}, "epoch": int(line["epoch"])})
    return lines


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that was cut off by a crash


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        full = f"{prefix}/{name}"
        flat.extend(_flat(full, value) if isinstance(value, dict) else [(full, value)])
    return flat
