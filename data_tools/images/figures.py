"""What all diagrams have in common: title, units and grid of a pair of axes, and the file."""

from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.files import replacing

if TYPE_CHECKING:  # matplotlib takes half a second, which only the end of a training takes
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def label_axes(axes: "Axes", title: str, x: str, y: str) -> None:
    """Give axes a title, a grid and the units of x and y."""
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, complete or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
