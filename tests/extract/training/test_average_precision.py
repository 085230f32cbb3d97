import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.training.average_precision import (
    attribute_precisions,
    average_precision,
    detection_precisions,
    matched_objects,
    pairwise_iou,
    weighted_mean,
)


def loop_overlap(a, b):
    """Of two boxes, counting pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    return shared / sum(-shared / 2 + (c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))


def area_by_recall(flags, count):
    """VOC's area: at each recall that is reached, the best precision at that recall or a higher one."""
    points = []
    for rank in range(1, len(flags) + 1):
        hits = sum(flags[:rank])
        points.append((hits / count, hits / rank))
    area, reached = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points if recall > 0}):
        area += (recall - reached) * max(precision for r, precision in points if r >= recall)
        reached = recall
    return area


def loop_precision(detections, truth, label):
    """VOC's rule for one class: `detections` (image, class, score, box), `truth` (image, class, box)."""
    objects = [(image, box) for image, found, box in truth if found == label]
    taken, flags = set(), []
    for image, _, _, box in sorted((d for d in detections if d[1] == label), key=lambda d: -d[2]):
        best, which = -1.0, None
        for number, (other_image, other) in enumerate(objects):
            if other_image == image and loop_overlap(box, other) > best:
                best, which = loop_overlap(box, other), number
        flags.append(best > 0.5 and which not in taken)
        if best > 0.5:
            taken.add(which)
    return area_by_recall(flags, len(objects)) if objects else 0.0


def fast_precisions(detections, truth, num_images, num_classes):
    classes, scores, matches, object_classes, start = [], [], [], [], 0
    for image in range(num_images):
        found = [d for d in detections if d[0] == image]
        objects = [t for t in truth if t[0] == image]
        labels = np.array([d[1] for d in found], dtype=int)
        object_labels = np.array([t[1] for t in objects], dtype=int)
        local = matched_objects(
            np.array([d[3] for d in found], dtype=float).reshape(-1, 4),
            labels,
            np.array([t[2] for t in objects], dtype=float).reshape(-1, 4),
            object_labels,
        )
        matches.append(np.where(local >= 0, local + start, -1))
        start += len(objects)
        classes.append(labels)
        scores.append(np.array([d[2] for d in found], dtype=float))
        object_classes.append(object_labels)
    joined = [np.concatenate(arrays) for arrays in (classes, scores, matches, object_classes)]
    return detection_precisions(joined[0], joined[1], joined[2], joined[3], num_classes)


corner = st.integers(0, 6)
box = st.tuples(corner, corner, corner, corner).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
image, label = st.integers(0, 2), st.integers(0, 3)
scored = st.tuples(image, label, st.sampled_from([0.1, 0.4, 0.4000001, 0.9]), box)
annotated = st.tuples(image, label, box)


@settings(max_examples=300, deadline=None)
@given(st.lists(scored, max_size=25), st.lists(annotated, max_size=12))
def test_precisions_are_those_of_the_published_rule(detections, truth):
    detections.sort(key=lambda d: d[0])  # equal scores rank by image, in either
    fast = fast_precisions(detections, truth, num_images=3, num_classes=5)
    slow = [loop_precision(detections, truth, label) for label in range(5)]
    np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_a_worked_example():
    truth = [(0, 0, (0, 0, 9, 9)), (0, 0, (50, 50, 59, 59)), (1, 1, (0, 0, 9, 9))]
    detections = [
        (0, 0, 0.9, (0, 0, 9, 9)),  # right
        (1, 0, 0.8, (80, 80, 90, 90)),  # wrong
        (0, 0, 0.7, (50, 50, 59, 58)),  # right
        (0, 0, 0.6, (51, 51, 59, 59)),  # found already
        (1, 1, 0.9, (0, 0, 9, 4)),  # exactly a half: not more than it
    ]
    assert fast_precisions(detections, truth, 2, 3) == pytest.approx([0.5 * 1 + 0.5 * 2 / 3, 0, 0])


def test_overlap_counts_pixels():
    assert pairwise_iou(np.array([[0.0, 0, 9, 9]]), np.array([[0.0, 0, 9, 4], [9, 9, 12, 12]])) == pytest.approx(
        np.array([[50 / 100, 1 / (100 + 16 - 1)]])
    )


def test_nothing_found_and_nothing_to_find():
    assert average_precision(np.array([False, False]), 3) == 0
    assert average_precision(np.array([], dtype=bool), 3) == 0
    assert average_precision(np.array([True]), 0) == 0
    empty = np.zeros((0, 4))
    assert matched_objects(empty, np.zeros(0, int), empty, np.zeros(0, int)).shape == (0,)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_attribute_precisions_are_areas_of_each_ranking(objects, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (objects, 6)) / 4  # with ties
    wanted = rng.random((objects, 6)) < 0.3
    expected = []
    for column in range(6):
        ranking = np.argsort(-scores[:, column], kind="stable").tolist()
        flags = [bool(wanted[row, column]) for row in ranking]
        expected.append(area_by_recall(flags, sum(flags)) if any(flags) else 0.0)
    np.testing.assert_allclose(attribute_precisions(scores, wanted), expected, atol=1e-12)


def test_weights_are_the_numbers_of_objects():
    assert weighted_mean(np.array([0.5, 1.0, 0.0]), np.array([3, 1, 0])) == pytest.approx(2.5 / 4)
    assert weighted_mean(np.array([0.0]), np.array([0])) == 0
