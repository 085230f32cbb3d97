"""Evaluation of a detector: average precision of boxes and attributes, as Anderson et al. (2018) count it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from data_tools.console import Progress
from data_tools.images.decoding import read_image, to_bgr
from extract.detector.detector import Detector
from extract.training.average_precision import (
    attribute_precisions,
    detection_precisions,
    matched_objects,
    weighted_mean,
)
from extract.training.data import DetectionSplit


@dataclass(frozen=True)
class DetectorScores:
    """Scores of a split, each between 0 and 1.

    Attributes:
        ap50: average precision of detected boxes at IoU 0.5, mean over all classes; a class without annotated
            objects counts as 0, as in the published evaluations.
        weighted_ap50: the same, each class weighted by its number of objects.
        attribute_ap, weighted_attribute_ap: average precision of the attributes of the annotated boxes, mean over
            all attributes and weighted by the number of objects that have each.
            None where the data has no attributes.
        attribute_accuracy: share of the annotated objects' attributes that are predicted: for an object with n
            attributes, the n most probable ones in its annotated box; None as above.
        absent_classes, absent_attributes: how many of them have no annotated object.
        ap50_by_class, attribute_ap_by_name: of each class and attribute.
    """

    ap50: float
    weighted_ap50: float
    attribute_ap: float | None
    weighted_attribute_ap: float | None
    attribute_accuracy: float | None
    absent_classes: int
    absent_attributes: int
    ap50_by_class: dict[str, float]
    attribute_ap_by_name: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

    def as_text(self) -> str:
        """Lines for the console; precisions by class only where there are at most 20."""
        lines = [f"box AP50            {self.ap50:.3f}", f"weighted box AP50   {self.weighted_ap50:.3f}"]
        lines += _precision_lines(self.ap50_by_class, self.absent_classes, "classes")
        if self.attribute_ap_by_name:
            lines.append(f"attribute AP        {self.attribute_ap:.3f}")
            lines.append(f"weighted attr. AP   {self.weighted_attribute_ap:.3f}")
            lines += _precision_lines(self.attribute_ap_by_name, self.absent_attributes, "attributes")
            lines.append(f"attribute accuracy  {self.attribute_accuracy:.3f}")
        return "\n".join(f"  {line}" for line in lines)


def _precision_lines(by_name: dict[str, float], absent: int, what: str) -> list[str]:
    lines = [f"  {name:<17} {value:.3f}" for name, value in by_name.items()] if len(by_name) <= 20 else []
    if absent:
        lines.append(f"  {absent} of {len(by_name)} {what} have no annotated object; each counts as 0")
    return lines


@dataclass(frozen=True)
class ImageResult:
    """The network's predictions for one image together with its annotations.

    Attributes:
        classes, scores: (n,) of the detections.
        matches: (n,) which annotated object each detection overlaps, or -1.
        object_classes: (t,) of the annotated objects.
        attribute_scores: (t, A) probability of each attribute in each annotated box.
        attributes: (t, A) whether the object has it.
    """

    classes: np.ndarray
    scores: np.ndarray
    matches: np.ndarray
    object_classes: np.ndarray
    attribute_scores: np.ndarray
    attributes: np.ndarray


def evaluate_detector(detector: Detector, split: DetectionSplit) -> DetectorScores:
    """Run the detector on a split's images and score its boxes and attributes.

    Raises:
        InputError: an image cannot be read.
    """
    results: list[ImageResult] = []
    with Progress("evaluate detector", len(split.records), "images") as bar:
        for record in split.records:
            image = to_bgr(read_image(Path(record["file_name"])))
            objects = np.array([a["bbox"] for a in record["annotations"]], dtype=np.float32).reshape(-1, 4)
            instances, attribute_scores = _predict(detector, image, objects)
            results.append(image_result(record["annotations"], objects, instances, attribute_scores))
            bar.advance()
    return score(split, results)


def _predict(detector: Detector, image: np.ndarray, objects: np.ndarray) -> tuple[Instances, np.ndarray]:
    """The detections in an image, in pixels of the original, and the attributes of the given boxes.

    Args:
        detector: the network.
        image: (H, W, 3) BGR.
        objects: (t, 4) boxes in its pixels.

    Returns:
        The detections, and (t, A) attribute probabilities, predicted from the network's own class of each box.
    """
    resized, geometry = detector.resizing(image)
    found = detector.detect(resized, geometry)
    if not len(objects):
        return found, np.zeros((0, detector.num_attributes), np.float32)
    [found_in_boxes] = detector.predict_boxes([resized], [geometry], [torch.from_numpy(objects)])
    return found, found_in_boxes.attribute_probabilities.cpu().numpy()


def image_result(
    annotations: list[dict[str, Any]], objects: np.ndarray, instances: Instances, attribute_scores: np.ndarray
) -> ImageResult:
    """Match the detections of an image with its annotations, of which `objects` are the boxes."""
    instances = instances.to("cpu")
    classes = instances.pred_classes.numpy()
    object_classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    attributes = np.zeros(attribute_scores.shape, dtype=bool)
    for row, annotation in zip(attributes, annotations, strict=True):
        row[annotation["attribute_ids"]] = True
    matches = matched_objects(instances.pred_boxes.tensor.numpy(), classes, objects, object_classes)
    return ImageResult(classes, instances.scores.numpy(), matches, object_classes, attribute_scores, attributes)


def score(split: DetectionSplit, results: list[ImageResult]) -> DetectorScores:
    """The scores of a split from the results of its images."""
    starts = np.cumsum([0, *(len(r.object_classes) for r in results[:-1])])
    matches = [np.where(r.matches >= 0, r.matches + start, -1) for r, start in zip(results, starts, strict=True)]
    object_classes = np.concatenate([r.object_classes for r in results])
    attributes = np.concatenate([r.attributes for r in results])
    attribute_scores = np.concatenate([r.attribute_scores for r in results])
    precisions = detection_precisions(
        np.concatenate([r.classes for r in results]),
        np.concatenate([r.scores for r in results]),
        np.concatenate(matches),
        object_classes,
        len(split.classes),
    )
    counts = np.bincount(object_classes, minlength=len(split.classes))
    of_attributes = attribute_precisions(attribute_scores, attributes)
    attribute_counts = attributes.sum(axis=0)
    return DetectorScores(
        ap50=float(precisions.mean()),
        weighted_ap50=weighted_mean(precisions, counts),
        attribute_ap=float(of_attributes.mean()) if split.attributes else None,
        weighted_attribute_ap=weighted_mean(of_attributes, attribute_counts) if split.attributes else None,
        attribute_accuracy=attribute_accuracy(attribute_scores, attributes) if split.attributes else None,
        absent_classes=int((counts == 0).sum()),
        absent_attributes=int((attribute_counts == 0).sum()),
        ap50_by_class=dict(zip(split.classes, precisions.tolist(), strict=True)),
        attribute_ap_by_name=dict(zip(split.attributes, of_attributes.tolist(), strict=True)),
    )


def attribute_accuracy(scores: np.ndarray, attributes: np.ndarray) -> float:
    """Share of the objects' attributes that are among the n most probable ones of an object with n attributes.

    >>> attribute_accuracy(np.array([[0.7, 0.2, 0.1]]), np.array([[True, False, True]]))
    0.5

    Args:
        scores: (t, A) probabilities of the attributes.
        attributes: (t, A) whether the object has each.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(attributes, order, axis=1)
    counted = np.arange(attributes.shape[1])[None] < attributes.sum(axis=1)[:, None]
    return float((ranked & counted).sum() / max(attributes.sum(), 1))
