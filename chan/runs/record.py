"""What a run was trained on, with and for how long, and what was measured of it: `training.json`, `recall.json`.

The model card (`chan.runs.card`) says the same for people.
"""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_tools.captions.splits import Split
from data_tools.errors import InputError, reading
from data_tools.files import read_json, replace_file
from data_tools.machine import machine

TRAINING, RECALL = "training.json", "recall.json"


class TrainingClock:
    """Keeps `training.json`; the seconds of a resumed run are added to those of the earlier ones.

    Args:
        folder: the run folder.
        data: the data folder, as it was given.
        train, dev: the splits.
        parameters: number of the model's parameters.
    """

    def __init__(self, folder: Path, data: Path, train: Split, dev: Split, parameters: int) -> None:
        self._path, self._begun = folder / TRAINING, time.monotonic()
        before = load_record(folder, TRAINING)
        with reading(self._path, "not what chan train writes"):
            self._seconds = float(before.get("seconds", 0))
        self._record = {
            "started": str(before.get("started") or datetime.now(UTC).isoformat(timespec="seconds")),
            "data": data.resolve().name,
            "splits": {
                split.name: {"images": len(split.image_ids), "captions": len(split.captions)}
                for split in (train, dev)
            },
            "parameters": parameters,
            "machine": machine(),
        }
        self.save()

    def save(self) -> None:
        """Write the file, with the seconds so far."""
        seconds = round(self._seconds + time.monotonic() - self._begun, 1)
        replace_file(self._path, (json.dumps({**self._record, "seconds": seconds}, indent=2) + "\n").encode())


def load_record(folder: Path, name: str) -> dict[str, Any]:
    """`TRAINING` or `RECALL` of a run folder; empty where it has none.

    Raises:
        InputError: the file is no object of names and values.
    """
    path = folder / name
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected an object of names and values")
    return record


def add_recall(folder: Path, data: Path, document: dict[str, Any]) -> None:
    """Add an evaluation to `recall.json`; one of the same data, split and folds is replaced.

    Args:
        folder: the run folder.
        data: the data folder.
        document: the numbers of the evaluation as `chan evaluate --json` prints them.
    """
    measured = load_record(folder, RECALL)
    folds = f", average of {document['folds']} folds" if document["folds"] > 1 else ""
    measured[f"{data.resolve().name}, {document['split']}{folds}"] = document
    replace_file(folder / RECALL, (json.dumps(measured, indent=2) + "\n").encode())
