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
    lines = [f"{region['attribute']} {region['class']} {region['class_score']:.2f}" for region in regions]
    drawing = draw_regions(image, columns["boxes"], lines)
    return drawing, regions


def _region(columns: dict[str, np.ndarray], row: int, labels: Labels) -> dict[str, object]:
    label, attribute = int(columns["class_ids"][row]), int(columns["attribute_ids"][row])
    return {
        "box": [round(float(edge), 1) for edge in columns["boxes"][row]],
        "class": labels.classes[label] if labels.classes else f"class {label}",
        "class_score": round(float(columns["class_scores"][row]), 4),
        "attribute": labels.attributes[attribute] if labels.attributes else f"attribute {attribute}",
        "attribute_score": round(float(columns["attribute_scores"][row]), 4),
    }
