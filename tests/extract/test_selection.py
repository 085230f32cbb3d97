import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.selection import CaffeSelection, per_class_nms, pixel_iou


def naive_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return shared / (area[0] + area[1] - shared)


def naive_rule(boxes, probabilities, low, high, threshold, nms):
    """generate_tsv.py's rule, class by class and box by box, in float64."""
    confidence = [0.0] * len(boxes)
    for c in range(probabilities.shape[1]):
        kept = []
        for i in sorted(range(len(boxes)), key=lambda i: -probabilities[i, c]):
            if all(naive_iou(boxes[i], boxes[k]) < nms for k in kept):
                kept.append(i)
                confidence[i] = max(confidence[i], probabilities[i, c])
    chosen = [i for i in range(len(boxes)) if confidence[i] >= threshold]
    ranked = sorted(range(len(boxes)), key=lambda i: -confidence[i])
    if len(chosen) < low:
        return ranked[:low]
    if len(chosen) > high:
        return ranked[:high]
    return chosen


def scene(rng, count, classes):
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 50, (count, 2))], axis=1)
    logits = rng.normal(size=(count, classes + 1)) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return boxes, probabilities[:, :-1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 30),
    classes=st.integers(1, 12),
    bounds=st.tuples(st.integers(1, 36), st.integers(0, 40)),
    threshold=st.sampled_from([0.05, 0.2, 0.6]),
    nms=st.sampled_from([0.1, 0.3, 0.7]),
)
def test_the_fast_rule_is_the_published_one(seed, count, classes, bounds, threshold, nms):
    boxes, probabilities = scene(np.random.default_rng(seed), count, classes)
    low, high = bounds[0], bounds[0] + bounds[1]
    selection = CaffeSelection(low, high, threshold, nms)
    chosen = selection(torch.tensor(boxes), torch.tensor(probabilities))
    assert chosen.tolist() == naive_rule(boxes, probabilities, low, high, threshold, nms)


def test_at_the_published_size():
    boxes, probabilities = scene(np.random.default_rng(0), 300, 1600)
    chosen = CaffeSelection(36, 36)(torch.tensor(boxes), torch.tensor(probabilities))
    assert chosen.tolist() == naive_rule(boxes, probabilities, 36, 36, 0.2, 0.3)


def test_overlap_counts_pixels_and_suppresses_at_equality():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 2.0], [0.0, 0.0, 9.0, 1.0]])
    assert pixel_iou(boxes)[0].tolist() == pytest.approx([1.0, 0.3, 0.2])
    survives = per_class_nms(boxes.double(), torch.tensor([[0.9], [0.8], [0.7]], dtype=torch.double), 0.3)
    assert survives.flatten().tolist() == [True, False, True]


def test_equal_confidences_keep_the_order_of_the_proposals():
    boxes = torch.tensor([[x, 0.0, x + 5.0, 5.0] for x in (0.0, 100.0, 200.0, 300.0)])
    probabilities = torch.full((4, 2), 0.1)
    assert CaffeSelection(3, 3)(boxes, probabilities).tolist() == [0, 1, 2]


def test_fewer_proposals_than_asked_for_are_all_selected():
    boxes, probabilities = scene(np.random.default_rng(1), 5, 3)
    chosen = CaffeSelection(36, 36)(torch.tensor(boxes), torch.tensor(probabilities))
    assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("low", "high"), [(0, 5), (5, 4), (-1, -1)])
def test_impossible_bounds_are_refused(low, high):
    with pytest.raises(ValueError, match="min_boxes <= max_boxes"):
        CaffeSelection(low, high)
