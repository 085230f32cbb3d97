"""The curves of a training as a picture, drawn from the lines of `metrics.jsonl`."""

from pathlib import Path
from typing import Any

from chan.training.log import load_metrics
from data_tools.files import replacing

FILE = "curves.png"
RECALLS = ("r1", "r5", "r10")


def draw_curves(folder: Path, chance: float) -> Path | None:
    """Draw the loss and the recall on dev of a run folder over the steps; the file, None if nothing was measured.

    Args:
        folder: with `metrics.jsonl`, see `chan.training.log`.
        chance: rsum of a random ranking of dev, which the picture shows.

    Raises:
        InputError: the metrics are damaged.
    """
    lines = load_metrics(folder)
    losses, dev = ([line for line in lines if line["kind"] == kind] for kind in ("train", "dev"))
    if not losses:
        return None
    from matplotlib.figure import Figure  # half a second, which only the end of a training takes

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    loss, recall, total = figure.subplots(1, 3)
    loss.plot([line["step"] for line in losses], [line["loss"] for line in losses], color="#1f77b4", linewidth=1)
    _label(loss, "training loss", "loss")
    for side, style, name in (("i2t", "-", "image to text"), ("t2i", "--", "text to image")):
        for key, colour in zip(RECALLS, ("#1f77b4", "#e07b00", "#1a8f3c"), strict=True):
            values = [line[side][key] for line in dev]
            label = f"R@{key[1:]} {name}"
            recall.plot([line["step"] for line in dev], values, style, color=colour, marker=".", label=label)
    _label(recall, "recall on dev", "percent")
    total.plot([line["step"] for line in dev], [line["rsum"] for line in dev], color="#d62728", marker=".")
    total.axhline(chance, color="#8a9097", linestyle=":", label=f"chance {chance:.1f}")
    _label(total, "rsum on dev", "rsum of 600")
    recall.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    total.legend(fontsize=8)
    with replacing(folder / FILE) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return folder / FILE


def _label(axes: Any, title: str, unit: str) -> None:
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
