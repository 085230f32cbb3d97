import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.choices import Rule
from extract.detector.proposals import Proposals
from extract.regions.nms import per_class_nms
from extract.regions.selection import CaffeSelection, GivenBoxes, Grid, SweepSelection, build_selection


def naive_iou(a, b, one=1):
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    shared = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return shared / (area[0] + area[1] - shared)


def naive_matrix(boxes, nms, inclusive):
    """Which box suppresses which."""
    iou = np.array([[naive_iou(a, b, inclusive) for b in boxes] for a in boxes])
    return iou >= nms if inclusive else iou > nms


def naive_rule(boxes, probabilities, low, high, threshold, nms, inclusive):
    """generate_tsv.py's rule, class by class and box by box, in float64."""
    suppresses = naive_matrix(boxes, nms, inclusive)
    confidence = [0.0] * len(boxes)
    for c in range(probabilities.shape[1]):
        kept = []
        for i in sorted(range(len(boxes)), key=lambda i: -probabilities[i, c]):
            if not suppresses[i, kept].any():
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


def naive_sweep(boxes, probabilities, low, high, threshold, nms):
    """airsplay's rule in float64: one suppression for all classes, loosened until `low` survive."""
    scores = probabilities.max(axis=1)
    ranked = sorted(range(len(boxes)), key=lambda i: -scores[i])
    for overlap in [nms + 0.1 * step for step in range(11)]:
        suppresses = naive_matrix(boxes, overlap, False)
        kept = []
        for i in ranked:
            if overlap >= 1 or not suppresses[i, kept].any():
                kept.append(i)
        if len(kept) >= low or overlap >= 1:
            break
    confident = [i for i in kept if scores[i] >= threshold]
    return kept[: min(max(len(confident), low), high)]


def proposals(boxes, probabilities, regressed=None):
    boxes, probabilities = torch.as_tensor(boxes), torch.as_tensor(probabilities)
    regressed = boxes if regressed is None else torch.as_tensor(regressed)
    return Proposals(boxes, regressed, boxes, probabilities, probabilities)


bounds_of_regions = st.tuples(st.integers(1, 36), st.integers(0, 40))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 30),
    classes=st.integers(1, 12),
    bounds=bounds_of_regions,
    threshold=st.sampled_from([0.05, 0.2, 0.6]),
    nms=st.sampled_from([0.1, 0.3, 0.7]),
    inclusive=st.booleans(),
)
def test_the_fast_rule_is_the_published_one(seed, count, classes, bounds, threshold, nms, inclusive):
    boxes, probabilities = scene(np.random.default_rng(seed), count, classes)
    low, high = bounds[0], bounds[0] + bounds[1]
    chosen = CaffeSelection(low, high, threshold, nms, inclusive)(proposals(boxes, probabilities))
    assert chosen.rows.tolist() == naive_rule(boxes, probabilities, low, high, threshold, nms, inclusive)
    assert torch.equal(chosen.boxes, torch.tensor(boxes)[chosen.rows])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(1, 70), min_size=1, max_size=5),  # up to two words of bits
    inclusive=st.booleans(),
)
def test_images_of_a_batch_are_chosen_from_as_alone(seed, counts, inclusive):
    rng = np.random.default_rng(seed)
    scenes = [scene(rng, count, 7) for count in counts]
    batch = [proposals(*each) for each in scenes]
    for rule in (CaffeSelection(3, 9, 0.2, 0.3, inclusive), SweepSelection(3, 9), GivenBoxes("0")):
        for chosen, (boxes, probabilities), found in zip(rule.of_batch(batch), scenes, batch, strict=True):
            if isinstance(rule, CaffeSelection):
                expected = naive_rule(boxes, probabilities, 3, 9, 0.2, 0.3, inclusive)
            else:
                expected = rule(found).rows.tolist()
            assert chosen.rows.tolist() == expected
            assert torch.equal(chosen.boxes, rule(found).boxes)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    bounds=bounds_of_regions,
    threshold=st.sampled_from([0.0, 0.3, 0.9]),
    nms=st.sampled_from([0.05, 0.3, 0.5]),
)
def test_the_sweep_is_airsplays(seed, count, bounds, threshold, nms):
    rng = np.random.default_rng(seed)
    boxes, probabilities = scene(rng, count, 6)
    low, high = bounds[0], bounds[0] + bounds[1]
    found = proposals(boxes + 500, probabilities, boxes)
    chosen = SweepSelection(low, high, threshold, nms)(found)
    assert chosen.rows.tolist() == naive_sweep(boxes, probabilities, low, high, threshold, nms)
    assert torch.equal(chosen.boxes, torch.tensor(boxes)[chosen.rows])  # regressed, not proposed


@pytest.mark.slow
@pytest.mark.parametrize("inclusive", [True, False])
def test_at_the_published_size(inclusive):
    boxes, probabilities = scene(np.random.default_rng(0), 300, 1600)
    chosen = CaffeSelection(36, 36, inclusive=inclusive)(proposals(boxes, probabilities))
    assert chosen.rows.tolist() == naive_rule(boxes, probabilities, 36, 36, 0.2, 0.3, inclusive)


def test_overlap_counts_pixels_and_suppresses_at_equality():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 2.0], [0.0, 0.0, 9.0, 1.0]]).double()
    probabilities = torch.tensor([[0.9], [0.8], [0.7]], dtype=torch.double)
    assert per_class_nms([boxes], [probabilities], 0.3, True)[0].flatten().tolist() == [True, False, True]
    assert per_class_nms([boxes], [probabilities], 2 / 9, False)[0].flatten().tolist() == [True, True, False]


def test_equal_confidences_keep_the_order_of_the_proposals():
    boxes = torch.tensor([[x, 0.0, x + 5.0, 5.0] for x in (0.0, 100.0, 200.0, 300.0)])
    found = proposals(boxes, torch.full((4, 2), 0.1))
    assert CaffeSelection(3, 3)(found).rows.tolist() == [0, 1, 2]
    assert SweepSelection(3, 3)(found).rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", ["caffe", "detectron2"])
def test_fewer_proposals_than_asked_for_are_all_selected(rule):
    boxes, probabilities = scene(np.random.default_rng(1), 5, 3)
    chosen = build_selection(rule, (36, 36), None, None, True)(proposals(boxes, probabilities))
    assert sorted(chosen.rows.tolist()) == [0, 1, 2, 3, 4]


def test_given_boxes_are_all_kept_in_their_order():
    boxes, probabilities = scene(np.random.default_rng(1), 5, 3)
    chosen = GivenBoxes("abc")(proposals(boxes, probabilities))
    assert chosen.rows.tolist() == [0, 1, 2, 3, 4]


def test_cells_are_all_kept_in_their_order():
    boxes, probabilities = scene(np.random.default_rng(1), 9, 3)
    assert Grid(3)(proposals(boxes, probabilities)).rows.tolist() == list(range(9))
    assert (Grid(3).min_boxes, Grid(3).provenance_line()) == (9, "grid 3")
    for cells in (0, 101):
        with pytest.raises(ValueError, match=f"1 to 100 cells along each side, got {cells}"):
            Grid(cells)


def test_settings_replace_those_of_a_rule():
    assert build_selection(Rule.CAFFE, (10, 100), None, None, True) == CaffeSelection(10, 100, 0.2, 0.3, True)
    assert build_selection(Rule.DETECTRON2, (36, 36), 0.4, 0.6, False) == SweepSelection(36, 36, 0.4, 0.6, False)
    with pytest.raises(ValueError, match="'cafe' is not a valid Rule"):
        build_selection("cafe", (36, 36))  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0, 5), (5, 4), (-1, -1)])
def test_impossible_bounds_are_refused(low, high):
    for rule in (CaffeSelection, SweepSelection):
        with pytest.raises(ValueError, match="min_boxes <= max_boxes"):
            rule(low, high)
