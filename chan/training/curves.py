"""The curves of a training as a picture, drawn from the lines of `metrics.jsonl`."""

from pathlib import Path

from chan.training.log import load_metrics
from data_tools.images.figures import label_axes, save_figure

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
    label_axes(loss, "training loss", "step", "loss")
    for side, style, name in (("i2t", "-", "image to text"), ("t2i", "--", "text to image")):
        for key, colour in zip(RECALLS, ("#1f77b4", "#e07b00", "#1a8f3c"), strict=True):
            values = [line[side][key] for line in dev]
            label = f"R@{key[1:]} {name}"
            recall.plot([line["step"] for line in dev], values, style, color=colour, marker=".", label=label)
    label_axes(recall, "recall on dev", "step", "percent")
    total.plot([line["step"] for line in dev], [line["rsum"] for line in dev], color="#d62728", marker=".")
    total.axhline(chance, color="#8a9097", linestyle=":", label=f"chance {chance:.1f}")
    label_axes(total, "rsum on dev", "step", "rsum of 600")
    recall.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    total.legend(fontsize=8)
    save_figure(figure, folder / FILE)
    return folder / FILE
