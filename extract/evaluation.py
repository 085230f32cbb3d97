"""How good a detector is: box AP50 and the accuracy of its attributes."""

import contextlib
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_tools.console import Progress
from data_tools.errors import InputError
from extract.detection_data import DetectionSplit
from extract.detector import Detector
from extract.images import UnreadableImageError, read_image


@dataclass(frozen=True)
class DetectorScores:
    """Figures of a split, each between 0 and 1.

    Attributes:
        ap50: average precision of detected boxes at IoU 0.5, mean over classes, as COCO counts it.
        ap50_by_class: the same for each class.
        attribute_accuracy: share of the annotated objects' attributes found: of an object with n attributes
            the n most probable ones in its annotated box count.
    """

    ap50: float
    ap50_by_class: dict[str, float]
    attribute_accuracy: float

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


@torch.inference_mode()
def evaluate_detector(detector: Detector, split: DetectionSplit) -> DetectorScores:
    """Run the detector over a split's images and score its boxes and attributes.

    Raises:
        InputError: an image cannot be read.
    """
    detections: list[dict[str, Any]] = []
    found = annotated = 0
    with Progress("evaluate detector", len(split.records), "images") as bar:
        for number, record in enumerate(split.records):
            image = _read(Path(record["file_name"]))
            height, width = image.shape[:2]
            resized = detector.resizing(image)
            [output] = detector.model([{"image": resized, "height": height, "width": width}])
            detections += _coco_results(number, output["instances"].to("cpu"))
            hits, total = _attribute_hits(detector, resized, (height, width), record["annotations"])
            found, annotated = found + hits, annotated + total
            bar.advance()
    precisions = average_precisions(split, detections)
    return DetectorScores(
        ap50=float(np.mean([value for value in precisions if value >= 0])),
        ap50_by_class=dict(zip(split.classes, precisions, strict=True)),
        attribute_accuracy=found / max(annotated, 1),
    )


def _read(path: Path) -> np.ndarray:
    try:
        return read_image(path)
    except UnreadableImageError as error:
        raise InputError(f"{path}: {error}") from None


def _coco_results(image: int, instances: Any) -> list[dict[str, Any]]:
    boxes = instances.pred_boxes.tensor
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    columns = zip(sides, instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
    return [{"image_id": image, "bbox": b, "score": s, "category_id": c} for b, s, c in columns]


def average_precisions(split: DetectionSplit, detections: list[dict[str, Any]]) -> list[float]:
    """AP50 of each class; -1 for a class that no annotated object has.

    `detections` are COCO results whose `image_id` is the position of the image in the split.
    """
    truth = COCO()
    truth.dataset = {
        "images": [{"id": number} for number in range(len(split.records))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(split.classes)],
        "annotations": _coco_annotations(split),
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth.createIndex()
        if not detections:
            annotated = {annotation["category_id"] for annotation in truth.dataset["annotations"]}
            return [0.0 if number in annotated else -1.0 for number in range(len(split.classes))]
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # (recall levels, classes), all areas, 100 boxes
    return [float(precision[:, number].mean()) for number in range(len(split.classes))]


def _coco_annotations(split: DetectionSplit) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(split.records):
        for annotation in record["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": annotation["category_id"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return annotations


def _attribute_hits(
    detector: Detector, resized: torch.Tensor, original: tuple[int, int], annotations: list[dict[str, Any]]
) -> tuple[int, int]:
    """How many of the attributes of an image's annotated objects are found, and how many there are."""
    labelled = [annotation for annotation in annotations if annotation["attribute_ids"]]
    if not labelled:
        return 0, 0
    model = detector.model
    batch = model.preprocess_image([{"image": resized}])
    y, x = resized.shape[1] / original[0], resized.shape[2] / original[1]
    boxes = torch.tensor([annotation["bbox"] for annotation in labelled]) * torch.tensor([x, y, x, y])
    outputs = model.roi_heads.describe(model.backbone(batch.tensor), [Boxes(boxes.to(batch.tensor.device))])
    ranked = outputs.attribute_logits.argsort(dim=1, descending=True).cpu()
    hits = total = 0
    for row, annotation in zip(ranked, labelled, strict=True):
        wanted = set(annotation["attribute_ids"])
        hits += len(wanted & set(row[: len(wanted)].tolist()))
        total += len(wanted)
    return hits, total
