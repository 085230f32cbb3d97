"""The model card of a run, its README.md: what the model is, how it was trained, and how well it retrieves.

Its head is the YAML that the Hugging Face hub reads.
"""

import os
from pathlib import Path
from typing import Any

from chan.config import CodingName, Config, TextEncoderName
from chan.keys import keys_of
from chan.runs.folder import load_run_config
from chan.runs.provenance import load_provenance
from chan.runs.record import RECALL, TRAINING, add_recall, load_record
from chan.training.log import load_metrics
from data_tools.console import duration
from data_tools.errors import reading
from data_tools.files import replace_file

FILE = "README.md"
HEAD = """---
library_name: pixels-to-recall
tags:
- image-text-retrieval
- chan
---
"""


def write_card(folder: Path) -> Path:
    """Write, or renew, the model card of a run; the file.

    Raises:
        InputError: the run's files cannot be read, or the card cannot be written.
    """
    config, training = load_run_config(folder), load_record(folder, TRAINING)
    with reading(folder / RECALL, "not what chan evaluate writes"):
        recall = _recall(load_record(folder, RECALL), _best_dev(folder))
    with reading(folder / TRAINING, "not what chan train writes"):
        trained = _training(training, load_provenance(folder))
    about = f"{HEAD}\n# {folder.resolve().name}"
    parts = [about, _about(config), _use(), recall, trained, _configuration(config)]
    replace_file(folder / FILE, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return folder / FILE


def record_recall(folder: Path, data: Path, document: dict[str, Any]) -> None:
    """Add an evaluation to a run and its card, where the run's folder can be written; see `add_recall`."""
    if os.access(folder, os.W_OK):
        add_recall(folder, data, document)
        write_card(folder)


def _about(config: Config) -> str:
    text, model = config.model.text, config.model
    words = text.bert if text.encoder is TextEncoderName.bert else "a bidirectional GRU"
    of_what = "image and caption" if model.coding is CodingName["global"] else "region and word"
    return (
        f"An image-text retrieval model: captions are read by {words}, regions by the image encoder "
        f"`{model.image.encoder.value}`; coding `{model.coding.value}`, pooling `{model.pooling.value}`, "
        f"{model.dim} numbers per {of_what}."
    )


def _use() -> str:
    return """```
chan index . --data DATA --out photos.index
chan search photos.index "a dog on the beach"
```

DATA is a folder with features that were made as those of the training (below)."""


def _recall(measured: dict[str, Any], best: dict[str, Any] | None) -> str:
    rows = [_row(name, found) for name, found in measured.items()]
    if best is not None:
        rows.insert(0, _row(f"dev, epoch {best['epoch']}, the best", best))
    if not rows:
        return ""
    head = "| | image to text R@1 | R@5 | R@10 | text to image R@1 | R@5 | R@10 | rsum | 95 % | chance |"
    return "\n".join(["## Recall", "", head, f"|{' --- |' * 10}", *rows])


def _row(name: str, found: dict[str, Any]) -> str:
    numbers = [f"{found[side][key]:.1f}" for side in ("i2t", "t2i") for key in ("r1", "r5", "r10")]
    interval = found.get("intervals", {}).get("rsum")
    bounds = "" if interval is None else f"{interval[0]:.1f}-{interval[1]:.1f}"
    by_chance = found.get("chance", {}).get("rsum")
    last = [f"{found['rsum']:.1f}", bounds, "" if by_chance is None else f"{by_chance:.1f}"]
    return f"| {' | '.join([name, *numbers, *last])} |"


def _best_dev(folder: Path) -> dict[str, Any] | None:
    """The line of the best epoch in `metrics.jsonl`; the first of equal ones, as training keeps it."""
    dev = [line for line in load_metrics(folder) if line["kind"] == "dev"]
    return max(dev, key=lambda line: line["rsum"], default=None)


def _training(training: dict[str, Any], features: dict[str, str]) -> str:
    if not training:
        return ""
    machine = training["machine"]
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
    sizes = ", ".join(
        f"{name} {split['images']} images with {split['captions']} captions"
        for name, split in training["splits"].items()
    )
    made = {
        "data": f"{training['data']}: {sizes}",
        "features": features.get("selection", "not recorded"),
        "weights of the detector": features.get("weights_sha256", "not recorded"),
        "parameters": f"{training['parameters']:,}",
        "machine": where,
        "time": f"{duration(training['seconds'])} from {training['started']}",
        "versions": ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numpy")),
    }
    return "\n".join(["## Training", "", *(f"- {name}: {value}" for name, value in made.items())])


def _configuration(config: Config) -> str:
    """The keys that differ from the defaults; all are in config.yaml."""
    pairs = zip(keys_of(config), keys_of(Config()), strict=True)
    changed = [found for found, default in pairs if found.value != default.value]
    lines = [f"- `{found.name}={getattr(found.value, 'value', found.value)}`" for found in changed]
    return "\n".join(
        ["## Configuration", "", "What differs from the defaults (all keys: config.yaml):", "", *lines]
    )
