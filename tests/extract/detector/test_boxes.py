import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.detector.boxes import CaffeBoxTransform, clip, ending_one_later, grid_boxes, nms, sides, suppresses

DIALECTS = pytest.mark.parametrize("inclusive", [True, False], ids=["caffe", "detectron2"])


def loop_iou(a, b, inclusive):
    one = 1 if inclusive else 0
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b)]
    return shared / (sum(areas) - shared)


def loop_suppresses(a, b, threshold, inclusive):
    iou = loop_iou(a, b, inclusive)
    return iou >= threshold if inclusive else iou > threshold


def loop_nms(boxes, scores, threshold, inclusive):
    kept = []
    for row in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if not any(loop_suppresses(boxes[row], boxes[best], threshold, inclusive) for best in kept):
            kept.append(row)
    return kept


side = st.integers(1, 12)
box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], st.integers(0, 12), st.integers(0, 12), side, side)
# Exact in binary, so that rounding decides no tie; and a ratio of small integers often meets them exactly
threshold = st.sampled_from([0.25, 0.5, 0.75])


@DIALECTS
@settings(max_examples=200, deadline=None)
@given(boxes=st.lists(box, min_size=1, max_size=25), threshold=threshold)
def test_who_suppresses_whom_is_that_of_the_loop(inclusive, boxes, threshold):
    found = suppresses(torch.tensor(boxes, dtype=torch.float32), threshold, inclusive)
    assert found.tolist() == [[loop_suppresses(a, b, threshold, inclusive) for b in boxes] for a in boxes]


@DIALECTS
@settings(max_examples=200, deadline=None)
@given(boxes=st.lists(box, min_size=1, max_size=25), threshold=threshold, data=st.data())
def test_suppression_is_that_of_the_loop(inclusive, boxes, threshold, data):
    scores = data.draw(st.permutations(range(len(boxes))))
    tensors = torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores, dtype=torch.float32)
    assert nms(*tensors, threshold, inclusive).tolist() == loop_nms(boxes, scores, threshold, inclusive)


@settings(max_examples=100, deadline=None)
@given(boxes=st.lists(box, min_size=1, max_size=25), threshold=st.sampled_from([0.3, 0.7]), data=st.data())
def test_caffes_thresholds_suppress_at_equality_in_float32_too(boxes, threshold, data):
    """0.3 and 0.7 are no binary fractions: 3 / 10 in float32 is not below the threshold all the same."""
    scores = data.draw(st.permutations(range(len(boxes))))
    tensor = torch.tensor(boxes, dtype=torch.float32)
    assert nms(tensor, torch.tensor(scores).float(), threshold, True).tolist() == loop_nms(
        boxes, scores, threshold, True
    )
    assert suppresses(tensor, threshold, True).tolist() == [
        [loop_suppresses(a, b, threshold, True) for b in boxes] for a in boxes
    ]


@pytest.mark.parametrize(
    ("inclusive", "boxes", "survivors"),
    [
        # 10 x 10 pixels and the half of them: IoU exactly 0.5
        (True, [[0.0, 0, 9, 9], [0, 0, 9, 4]], [0]),
        (False, [[0.0, 0, 10, 10], [0, 0, 10, 5]], [0, 1]),
        # the same corners in the other dialect: 5 / 10 of 11 or 9 pixels is not a half
        (False, [[0.0, 0, 9, 9], [0, 0, 9, 4]], [0, 1]),
        (True, [[0.0, 0, 10, 10], [0, 0, 10, 5]], [0]),
        # touching boxes share a line of pixels in Caffe
        (True, [[0.0, 0, 1, 0], [1, 0, 1, 0]], [0]),
        (False, [[0.0, 0, 1, 1], [1, 0, 2, 1]], [0, 1]),
    ],
)
def test_an_overlap_of_exactly_one_half(inclusive, boxes, survivors):
    scores = torch.tensor([0.9, 0.8])
    assert nms(torch.tensor(boxes), scores, 0.5, inclusive).tolist() == survivors
    assert suppresses(torch.tensor(boxes), 0.5, inclusive)[0, 1].item() is (survivors == [0])


@DIALECTS
def test_nothing_in_nothing_out(inclusive):
    nothing = torch.empty(0, 4)
    assert nms(nothing, torch.empty(0), 0.5, inclusive).tolist() == []
    assert suppresses(nothing, 0.5, inclusive).shape == (0, 0)
    assert clip(nothing, (5, 7), inclusive).shape == (0, 4)


@DIALECTS
@given(boxes=st.lists(st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4), min_size=1, max_size=9))
def test_clipping_ends_at_the_last_pixel_or_at_the_border(inclusive, boxes):
    height, width = 20, 30
    bottom, right = (19, 29) if inclusive else (20, 30)
    expected = [[min(max(v, 0), limit) for v, limit in zip(b, [right, bottom] * 2, strict=True)] for b in boxes]
    tensor = torch.tensor(boxes)
    assert clip(tensor, (height, width), inclusive).tolist() == expected
    assert tensor.tolist() == boxes  # not changed in place


def test_sides_count_the_last_pixel_in_caffe():
    boxes = torch.tensor([[3.0, 4, 3, 4], [1, 2, 6, 9]])
    assert sides(boxes, inclusive=True).tolist() == [[1, 1], [6, 8]]
    assert sides(boxes, inclusive=False).tolist() == [[0, 0], [5, 7]]
    assert sides(ending_one_later(boxes), inclusive=False).tolist() == [[1, 1], [6, 8]]


def loop_decoded(box, delta, weights):
    """bbox_transform_inv of py-faster-rcnn for one box, with the units of the deltas."""
    width, height = box[2] - box[0] + 1.0, box[3] - box[1] + 1.0
    x, y = box[0] + 0.5 * width, box[1] + 0.5 * height
    dx, dy, dw, dh = (d / w for d, w in zip(delta, weights, strict=True))
    x, y = x + dx * width, y + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@given(
    boxes=st.lists(box, min_size=1, max_size=6),
    weights=st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]),
    seed=st.integers(0, 2**31),
)
def test_decoding_is_caffes(boxes, weights, seed):
    rng = torch.Generator().manual_seed(seed)
    deltas = torch.randn(len(boxes), 8, generator=rng, dtype=torch.double)  # two boxes of each
    decoded = CaffeBoxTransform(weights).apply_deltas(deltas, torch.tensor(boxes, dtype=torch.double))
    expected = [
        loop_decoded(b, row[:4], weights) + loop_decoded(b, row[4:], weights)
        for b, row in zip(boxes, deltas.tolist(), strict=True)
    ]
    # Detectron2 computes in float32
    torch.testing.assert_close(decoded.double(), torch.tensor(expected, dtype=torch.double), rtol=1e-5, atol=1e-4)


def test_no_delta_moves_the_last_corner_by_a_pixel():
    """Caffe's decoded corner lacks the - 1 that would undo the + 1 of the side."""
    boxes = torch.tensor([[7.0, 8, 20, 30]])
    decoded = CaffeBoxTransform((1.0, 1.0, 1.0, 1.0)).apply_deltas(torch.zeros(1, 4), boxes)
    assert decoded.tolist() == [[7, 8, 21, 31]]


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 9000), width=st.integers(1, 9000), cells=st.integers(1, 40))
def test_the_cells_of_a_grid_tile_the_image(height, width, cells):
    boxes = grid_boxes((height, width), cells)
    assert boxes.shape == (cells**2, 4)
    table = boxes.view(cells, cells, 4)  # row by row
    assert torch.equal(table[:, 1:, 0], table[:, :-1, 2])  # each begins to the bit where its neighbour ends
    assert torch.equal(table[1:, :, 1], table[:-1, :, 3])
    assert (table[:, 0, 0] == 0).all()
    assert (table[0, :, 1] == 0).all()
    assert (table[:, -1, 2] == width).all()
    assert (table[-1, :, 3] == height).all()
    expected = torch.tensor([[width / cells, height / cells]]).expand(cells**2, 2)
    torch.testing.assert_close(sides(boxes, inclusive=False), expected, rtol=1e-4, atol=2e-3)
