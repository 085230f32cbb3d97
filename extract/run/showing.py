"""One image with its regions drawn, each with its class, attribute and score."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.detection.labels import Labels
from data_tools.images.decoding import read_image, to_bgr
from data_tools.images.drawing import draw_regions
from extract.detector.detector import Detector
from extract.regions.selection import Selection
from extract.run.batches import select_regions


def show_image(
    path: Path, detector: Detector, selection: Selection, labels: Labels
) -> tuple[Image.Image, list[dict[str, object]]]:
    """Find the regions of one image and draw them.

    Returns:
        The drawing, and for each region its box (x1 y1 x2 y2 in pixels), class and attribute with their scores.

    Raises:
        InputError: the image cannot be read.
    """
    image = read_image(path)
    pixels, geometry = detector.resizing(to_bgr(image))
    [proposals] = detector([pixels], [geometry])
    columns = select_regions(proposals, selection)
    regions = [_region(columns, row, labels) for row in range(len(columns["boxes"]))]
    lines = [f"{name_of(region)} {region['class_score']:.2f}" for region in regions]
    drawing = draw_regions(image, columns["boxes"], lines)
    return drawing, regions


def _region(columns: dict[str, np.ndarray], row: int, labels: Labels) -> dict[str, object]:
    region: dict[str, object] = {"box": [round(float(edge), 1) for edge in columns["boxes"][row]]}
    for kind, names in (("class", labels.classes), ("attribute", labels.attributes)):
        if f"{kind}_ids" in columns:  # a network may have no attributes
            number = int(columns[f"{kind}_ids"][row])
            region[kind] = names[number] if names else f"{kind} {number}"
            region[f"{kind}_score"] = round(float(columns[f"{kind}_scores"][row]), 4)
    return region


def name_of(region: dict[str, object]) -> str:
    """The attribute, where there is one, and the class of a region of `show_image`."""
    return " ".join(str(region[kind]) for kind in ("attribute", "class") if kind in region)
