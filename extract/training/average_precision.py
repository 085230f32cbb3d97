"""Average precision by the rule of Pascal VOC (2010 on), for many classes at once.

A detection is compared with the annotated object of its image and class that it overlaps most: it is correct where
their IoU exceeds 0.5 and no detection of a higher score matched that object. Boxes are pixel-inclusive, with the
width x2 - x1 + 1.

Shapes: N detections of a split, n of one image, T annotated objects of a split, t of one image, C classes, A
attributes.
"""

import numpy as np
from numpy.typing import NDArray

MIN_IOU = 0.5  # a match has more

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


def pairwise_iou(boxes: Floats, others: Floats) -> Floats:
    """Pixel-inclusive intersection over union of (n, 4) and (t, 4) boxes x1 y1 x2 y2: (n, t) float64.

    >>> pairwise_iou(np.array([[0.0, 0.0, 9.0, 9.0]]), np.array([[0.0, 0.0, 9.0, 4.0]]))
    array([[0.5]])
    """
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    ends = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    starts = np.maximum(boxes[:, None, :2], others[None, :, :2])
    shared = np.clip(ends - starts + 1, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2] + 1).prod(axis=1) for b in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def matched_objects(boxes: Floats, classes: Integers, objects: Floats, object_classes: Integers) -> Integers:
    """The object of its class that each detection of one image overlaps most; -1 where the IoU is at most 0.5.

    Args:
        boxes: (n, 4) of the detections.
        classes: (n,) of the detections.
        objects: (t, 4) boxes of the annotated objects.
        object_classes: (t,) of the annotated objects.

    Returns:
        (n,) positions in `objects`; the first of several with equal IoU.
    """
    if not len(boxes) or not len(objects):
        return np.full(len(boxes), -1)
    iou = np.where(classes[:, None] == object_classes[None], pairwise_iou(boxes, objects), -1.0)
    best = iou.argmax(axis=1)
    return np.where(iou[np.arange(len(boxes)), best] > MIN_IOU, best, -1)


def detection_precisions(
    classes: Integers, scores: Floats, matches: Integers, object_classes: Integers, num_classes: int
) -> Floats:
    """Average precision of each class: (C,), 0 for a class without objects.

    Args:
        classes: (N,) of the detections of all images.
        scores: (N,) of the same; equal scores rank in this order.
        matches: (N,) the object (a position in `object_classes`) that each one would find, or -1.
        object_classes: (T,) classes of the objects of all images.
    """
    order = np.lexsort((-scores, classes))  # by class, then by falling score; stable
    ranked_classes, ranked_matches = classes[order], matches[order]
    correct = np.zeros(len(order), dtype=bool)
    matched, first = np.unique(ranked_matches, return_index=True)
    correct[first[matched >= 0]] = True  # an object counts for the first detection that matches it
    bounds = np.searchsorted(ranked_classes, np.arange(num_classes + 1))
    counts = np.bincount(object_classes, minlength=num_classes)
    return np.array(
        [
            average_precision(correct[start:end], int(count))
            for start, end, count in zip(bounds[:-1], bounds[1:], counts, strict=True)
        ]
    )


def average_precision(correct: NDArray[np.bool_], count: int) -> float:
    """Area under precision over recall, each precision the maximum at that recall or a higher one.

    >>> average_precision(np.array([True, False, True]), 2)
    0.8333333333333333

    Args:
        correct: whether each candidate is correct, by falling score.
        count: how many correct ones there are in all.
    """
    if not count or not correct.any():
        return 0.0
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[correct].sum() / count)


def attribute_precisions(scores: Floats, labels: NDArray[np.bool_]) -> Floats:
    """Average precision of each attribute over given boxes: (A,), 0 for an attribute that no object has.

    Args:
        scores: (T, A) of each attribute in each annotated box.
        labels: (T, A) whether the object has it.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(labels, order, axis=0)
    return np.array([average_precision(column, int(column.sum())) for column in ranked.T])


def weighted_mean(precisions: Floats, counts: Integers) -> float:
    """Mean of the classes' precisions, weighted by their numbers of objects; 0 where there is no object."""
    return float((precisions * counts).sum() / max(counts.sum(), 1))
