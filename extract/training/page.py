"""A page of validation images with the objects that a detector found in them, beside the annotated ones.

Shapes: n detections and t annotated objects of an image, A attributes.
"""

import html
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_tools.console import Progress
from data_tools.files import replace_file
from data_tools.images.decoding import read_image, to_bgr
from data_tools.images.drawing import Colour, draw_regions
from data_tools.images.pages import content_policy, jpeg_address
from extract.detector.detector import Detector
from extract.training.average_precision import matched_objects
from extract.training.data import DetectionSplit

PAGE = "detections.html"
SHOWN = 8  # images
MIN_SCORE = 0.5  # of a detection that is shown
MOST = 20  # detections that are shown in an image
SIDE = 800  # pixels of a picture's longer side
FOUND, WRONG, MISSED = (46, 160, 67), (218, 54, 51), (240, 150, 20)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem;
  color: #1f2328; background: #fff; }
section { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem; margin: 2rem 0; }
h2 { grid-column: 1 / -1; font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
figure { margin: .5rem 0; }
img { width: 100%; height: auto; display: block; border-radius: 4px; }
figcaption { color: #59636e; }
.found { color: #1a7f37; } .wrong { color: #cf222e; } .missed { color: #9a6700; }
@media (max-width: 700px) { section { grid-template-columns: 1fr; } }
"""


@dataclass(frozen=True)
class ShownObjects:
    """The objects of one picture, detected or annotated.

    Attributes:
        boxes: (n, 4) x1 y1 x2 y2 in pixels of the image.
        names: attributes, class and score of each.
        right: whether each detection is correct, or each annotated object was found.
    """

    boxes: np.ndarray
    names: list[str]
    right: list[bool]


def write_page(path: Path, detector: Detector, split: DetectionSplit) -> None:
    """Write the page of `SHOWN` images of a split, spread evenly, as one HTML file without scripts.

    Raises:
        InputError: an image cannot be read, or the file cannot be written.
    """
    rows = np.unique(np.linspace(0, len(split.records) - 1, min(SHOWN, len(split.records))).astype(int))
    sections = []
    with Progress("draw detections", len(rows), "images") as bar:
        for row in rows:
            sections.append(_section(detector, split, int(row)))
            bar.advance()
    text = (
        f"<h1>Detections in validation images</h1>\n<p>{len(rows)} of {len(split.records)} images, spread evenly. "
        f"Left: detections with a score of at least {MIN_SCORE}; <b class=found>green</b> if the IoU with an "
        "annotated object of the class exceeds 0.5 and no detection with a higher score found that object, else "
        "<b class=wrong>red</b>. Right: the annotated objects; <b class=found>green</b> if one of these "
        "detections found it, else <b class=missed>orange</b>.</p>"
    )
    replace_file(
        path,
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{content_policy(STYLE)}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Detections in validation images</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{text}\n"
        f"{''.join(sections)}</body>\n</html>\n".encode(),
    )


def _section(detector: Detector, split: DetectionSplit, row: int) -> str:
    """One image: what was detected, and what is annotated."""
    record = split.records[row]
    image = read_image(Path(record["file_name"]))
    detected, annotated = compare_objects(detector, split, record, image)
    correct, found = sum(detected.right), sum(annotated.right)
    captions = (
        f"{len(detected.names)} detections, {correct} of them correct",
        f"{len(annotated.names)} annotated objects, {found} of them found",
    )
    pictures = (_picture(image, detected, WRONG), _picture(image, annotated, MISSED))
    figures = (
        f'<figure><img src="{jpeg_address(jpeg)}" alt="{html.escape("; ".join(shown.names), quote=True)}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
        for jpeg, shown, caption in zip(pictures, (detected, annotated), captions, strict=True)
    )
    title = html.escape(f"{record['image_id']}: {Path(record['file_name']).name}")
    return f"<section>\n<h2>{title}</h2>\n{''.join(figures)}</section>\n"


def compare_objects(
    detector: Detector, split: DetectionSplit, record: dict, image: np.ndarray
) -> tuple[ShownObjects, ShownObjects]:
    """What a detector finds in an image (height, width, 3) RGB, and what a record annotates in it."""
    pixels, geometry = detector.resizing(to_bgr(image))
    found = detector.detect(pixels, geometry).to("cpu")
    rows = found.scores.argsort(descending=True, stable=True)
    rows = rows[found.scores[rows] >= MIN_SCORE][:MOST]
    boxes, classes, scores = found.pred_boxes.tensor[rows], found.pred_classes[rows], found.scores[rows]
    attributes = torch.zeros(len(rows), 0)
    if len(rows):
        [regions] = detector.predict_boxes([pixels], [geometry], [boxes])
        attributes = regions.attribute_probabilities.cpu()
    objects = np.array([a["bbox"] for a in record["annotations"]], dtype=np.float32).reshape(-1, 4)
    object_classes = np.array([a["category_id"] for a in record["annotations"]], dtype=np.int64)
    matches = matched_objects(boxes.numpy(), classes.numpy(), objects, object_classes).tolist()
    names = [
        " ".join([*probable_names(own, split.attributes), split.classes[label], f"{score:.2f}"])
        for own, label, score in zip(attributes, classes.tolist(), scores.tolist(), strict=True)
    ]
    right = [match >= 0 and match not in matches[:rank] for rank, match in enumerate(matches)]
    annotated = [
        " ".join([*(split.attributes[n] for n in a["attribute_ids"]), split.classes[a["category_id"]]])
        for a in record["annotations"]
    ]
    return (
        ShownObjects(boxes.numpy(), names, right),
        ShownObjects(objects, annotated, [number in matches for number in range(len(objects))]),
    )


def probable_names(probabilities: torch.Tensor, names: list[str]) -> list[str]:
    """The most probable attribute, and up to two others of at least half its probability, in order of their ids.

    >>> probable_names(torch.tensor([0.3, 0.5, 0.2]), ["small", "red", "old"])
    ['small', 'red']

    Args:
        probabilities: (A,) of one object; A may be 0.
        names: A names.
    """
    best = probabilities.argsort(descending=True, stable=True)[:3]
    return [names[n] for n in sorted(n for n in best.tolist() if probabilities[n] >= probabilities.max() / 2)]


def _picture(image: np.ndarray, shown: ShownObjects, other: Colour) -> bytes:
    """The image with these objects as a JPEG; those that are not right in the other colour."""
    colours = [FOUND if right else other for right in shown.right] or [FOUND]
    drawn = draw_regions(image, shown.boxes, shown.names, colours)
    drawn.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    drawn.save(written, "JPEG", quality=85)
    return written.getvalue()
