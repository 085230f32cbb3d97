"""Average precision by the rule of Pascal VOC (2010 on), for many classes at once.

A detection is right where the annotated object of its image and class that it overlaps most is overlapped by more
than a half and no detection of a higher score has taken that object. Boxes are pixel-inclusive: x2 - x1 + 1 wide.

Shapes: N detections of a split, n of one image, T and t annotated objects, C classes, A attributes.
"""

import numpy as np
from numpy.typing import NDArray

OVERLAP = 0.5

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """Pixel-inclusive intersection over union of (n, 4) and (t, 4) boxes x1 y1 x2 y2: (n, t)."""
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    least = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    most = np.maximum(boxes[:, None, :2], others[None, :, :2])
    shared = np.clip(least - most + 1, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2] + 1).prod(axis=1) for b in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def matched_objects(boxes: Floats, classes: Integers, objects: Floats, object_classes: Integers) -> Integers:
    """The object of its class that each detection of one image overlaps most, -1 where by no more than a half.

    Args:
        boxes: (n, 4) of the detections.
        classes: (n,) of the detections.
        objects: (t, 4) boxes of the annotated objects.
        object_classes: (t,) of the annotated objects.

    Returns:
        (n,) positions in `objects`; of equally overlapped ones the first.
    """
    if not len(boxes) or not len(objects):
        return np.full(len(boxes), -1)
    overlap = np.where(classes[:, None] == object_classes[None], overlaps(boxes, objects), -1.0)
    best = overlap.argmax(axis=1)
    return np.where(overlap[np.arange(len(boxes)), best] > OVERLAP, best, -1)


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
    order = np.lexsort((-scores, classes))  # by class, then the surest first; stable
    ranked_classes, ranked_matches = classes[order], matches[order]
    right = np.zeros(len(order), dtype=bool)
    taken, first = np.unique(ranked_matches, return_index=True)
    right[first[taken >= 0]] = True  # the first to match an object has it
    bounds = np.searchsorted(ranked_classes, np.arange(num_classes + 1))
    counts = np.bincount(object_classes, minlength=num_classes)
    return np.array(
        [
            average_precision(right[start:end], int(count))
            for start, end, count in zip(bounds[:-1], bounds[1:], counts, strict=True)
        ]
    )


def average_precision(right: NDArray[np.bool_], count: int) -> float:
    """Area under precision over recall, each precision the best that any recall from there on has.

    Args:
        right: whether each candidate is right, the surest first.
        count: how many right ones there are to be found.
    """
    if not count or not right.any():
        return 0.0
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / count)


def attribute_precisions(scores: Floats, wanted: NDArray[np.bool_]) -> Floats:
    """Average precision of each attribute over given boxes: (A,), 0 for an attribute that none has.

    Args:
        scores: (T, A) of each attribute in each annotated box.
        wanted: (T, A) whether the object has it.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(wanted, order, axis=0)
    return np.array([average_precision(column, int(column.sum())) for column in ranked.T])


def weighted_mean(precisions: Floats, counts: Integers) -> float:
    """Mean of the classes' precisions by their numbers of objects; 0 where there is none."""
    return float((precisions * counts).sum() / max(counts.sum(), 1))
