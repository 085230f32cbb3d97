"""The curves of a detector's training as a picture, drawn from the lines of Detectron2's `metrics.json`."""

import json
from pathlib import Path

from data_tools.errors import reading
from data_tools.files import read_text
from data_tools.images.figures import label_axes, save_figure

FILE = "curves.png"
METRICS = "metrics.json"
LOSSES = {
    "total_loss": "total",
    "loss_cls": "classes",
    "loss_box_reg": "boxes",
    "loss_attribute": "attributes",
    "loss_rpn_cls": "objectness",
    "loss_rpn_loc": "proposals",
}
PRECISIONS = {"ap50": "box AP50", "weighted_ap50": "weighted box AP50", "attribute_ap": "attribute AP"}

Curves = dict[str, tuple[list[int], list[float]]]


def load_curves(path: Path) -> Curves:
    """Iterations, counted from 1, and values of the losses and precisions that a run measured, by their keys.

    Of an iteration that a resumed run repeated, the later line counts.

    Raises:
        InputError: a line is no object of an iteration and numbers.
    """
    values: dict[str, dict[int, float]] = {}
    with reading(path, "not lines of metrics"):
        for text in read_text(path).splitlines():
            line = json.loads(text)
            iteration = int(line["iteration"]) + 1
            for key in (*LOSSES, *PRECISIONS):
                if key in line:
                    values.setdefault(key, {})[iteration] = float(line[key])
    return {key: (sorted(found), [found[n] for n in sorted(found)]) for key, found in values.items()}


def draw_curves(folder: Path) -> Path:
    """Draw the losses of a run folder, and the precisions where it measured any, over the iterations.

    Raises:
        InputError: the metrics are damaged.
    """
    from matplotlib.figure import Figure  # half a second, which only the end of a training takes

    curves = load_curves(folder / METRICS)
    parts = [("training losses", "loss", LOSSES)]
    if not PRECISIONS.keys().isdisjoint(curves):
        parts.append(("average precision in validation images", "average precision", PRECISIONS))
    figure = Figure(figsize=(6.5 * len(parts), 4.5), layout="constrained")
    for axes, (title, unit, names) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        for key, name in names.items():
            if key in curves:
                steps, values = curves[key]
                marker, style = "." if len(steps) < 30 else "", "--" if key == "weighted_ap50" else "-"
                axes.plot(steps, values, style, marker=marker, linewidth=1.2, label=name)
        label_axes(axes, title, "iteration", unit)
        axes.set_ylim(0, 1.02 if names is PRECISIONS else None)
        if axes.lines:
            axes.legend(fontsize=8)
    save_figure(figure, folder / FILE)
    return folder / FILE
