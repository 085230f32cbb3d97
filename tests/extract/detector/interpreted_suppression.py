"""The kernel of non-maximum suppression in Triton's interpreter, against loops and the CPU's implementations.

The interpreter must be chosen before Triton is imported, so `test_suppression.py` runs these in a process of their
own.
"""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from extract.detector import rpn, suppression_triton
from extract.detector.boxes import CaffeBoxTransform, MaskRCNNBoxTransform, clip, ending_one_later, nms, sides
from extract.detector.proposals import Proposals
from extract.detector.rpn import CaffeRPN, MaskRCNNRPN, ScaledImages, propose
from extract.detector.suppression import greedy, limit_below, nearest_limit
from extract.regions import nms as per_class
from extract.regions import selection
from extract.regions.selection import CaffeSelection, SweepSelection

side = st.integers(1, 12)
box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], st.integers(0, 12), st.integers(0, 12), side, side)
image = st.lists(st.tuples(box, st.sampled_from([0.1, 0.2, 0.3, math.nan, 0.0, -0.0])), max_size=20)
few = settings(max_examples=10, deadline=None)
thresholds = st.sampled_from([0.25, 0.3, 0.5, 0.7])


def loop(boxes: list[list[float]], scores: list[float], threshold: float, inclusive: bool) -> list[int]:
    """Greedy suppression box by box, in Python's float64."""
    one = 1 if inclusive else 0
    order = sorted(range(len(boxes)), key=lambda i: -math.inf if math.isnan(scores[i]) else -scores[i])
    kept: list[int] = []
    for row in order:
        if scores[row] != -math.inf and not any(falls(boxes[row], boxes[k], threshold, one) for k in kept):
            kept.append(row)
    return kept


def falls(a: list[float], b: list[float], threshold: float, one: int) -> bool:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + one, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + one, 0)
    areas = [(c[2] - c[0] + one) * (c[3] - c[1] + one) for c in (a, b)]
    iou = width * height / (sum(areas) - width * height)
    return iou >= threshold if one else iou > threshold


def tensors(images: list[list[tuple[list[float], float]]]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    pairs = [pair for own in images for pair in own]
    boxes = torch.tensor([pair[0] for pair in pairs], dtype=torch.float32).view(-1, 4)
    return boxes, torch.tensor([pair[1] for pair in pairs], dtype=torch.float32), [len(own) for own in images]


@few
@given(
    images=st.lists(image, min_size=1, max_size=3),
    threshold=st.sampled_from([0.25, 0.5]),  # exact in binary, so that rounding decides no tie
    inclusive=st.booleans(),
    most=st.one_of(st.none(), st.integers(1, 6)),
)
def test_survivors_are_those_of_a_loop(images, threshold, inclusive, most):
    boxes, scores, lengths = tensors(images)
    kept, counts = greedy(boxes, scores[None], lengths, [nearest_limit(threshold, inclusive)], inclusive, most)
    first = 0
    for number, own in enumerate(images):
        expected = loop([p[0] for p in own], [p[1] for p in own], threshold, inclusive)[:most]
        if most is None:
            assert kept[0, first : first + len(own)].nonzero().flatten().tolist() == sorted(expected)
        else:
            assert kept[number, 0].tolist() == expected + [0] * (most - len(expected))
            assert counts[number].tolist() == [len(expected)]
        first += len(own)


@few
@given(own=image, threshold=thresholds, inclusive=st.booleans())
def test_survivors_are_those_of_torchvision(own, threshold, inclusive):
    """To the last bit of the IoU: 0.3 and 0.7 are not exact in binary, and ratios of small integers meet them."""
    boxes, scores, lengths = tensors([own])
    ends = ending_one_later(boxes) if inclusive else boxes
    kept, counts = greedy(ends, scores[None], lengths, [limit_below(threshold, inclusive)], False, 20)
    assert kept[0, 0, : counts[0, 0]].tolist() == nms(boxes, scores, threshold, inclusive).tolist()


@few
@given(seed=st.integers(0, 2**32 - 1), threshold=thresholds, inclusive=st.booleans())
def test_boxes_of_any_numbers_are_compared_as_on_a_cpu(seed, threshold, inclusive):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (30, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + rng.uniform(0, 20, (30, 2))], axis=1)).float()
    boxes[3, 1], boxes[5, 2], boxes[7, 3] = math.nan, math.inf, -1.0
    probabilities = torch.from_numpy(rng.choice(np.linspace(0, 1, 30), (30, 3))).float()
    expected = per_class.per_class_nms([boxes], [probabilities], threshold, inclusive)[0]
    kept, _ = greedy(boxes, probabilities.T, [30], [nearest_limit(threshold, inclusive)], inclusive)
    assert torch.equal(kept.T, expected)


@few
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 90), most=st.integers(1, 60), inclusive=st.booleans())
def test_presorted_boxes_pass_in_groups(seed, count, most, inclusive):
    """In groups of sixteen, which earlier groups have thinned."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (2 * count, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + rng.uniform(1, 20, (2 * count, 2))], axis=1)).float()
    scores = torch.arange(0.0, -count, -1).repeat(2).masked_fill(torch.rand(2 * count) < 0.2, -math.inf)
    limit = [nearest_limit(0.4, inclusive)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suppression_triton, "PRESORTED_BLOCK", 16)
        found = greedy(boxes, scores[None], [count] * 2, limit, inclusive, most, presorted=True)
    for image, own in enumerate([slice(0, count), slice(count, None)]):
        expected = loop(boxes[own].double().tolist(), scores[own].tolist(), 0.4, inclusive)[:most]
        assert found[1][image].tolist() == [len(expected)]
        assert found[0][image, 0].tolist() == expected + [0] * (most - len(expected))


class Given(nn.Module):
    """A head that predicts what is given."""

    def __init__(self, logits: torch.Tensor, deltas: torch.Tensor) -> None:
        super().__init__()
        self.given = [logits], [deltas]

    def forward(self, maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.given


def network(kind: type[RPN], logits: torch.Tensor, deltas: torch.Tensor, before: int, after: int) -> RPN:
    transforms = {CaffeRPN: CaffeBoxTransform, MaskRCNNRPN: MaskRCNNBoxTransform, RPN: Box2BoxTransform}
    anchors = DefaultAnchorGenerator(sizes=[[16.0, 32.0]], aspect_ratios=[[0.5, 1.0]], strides=[16])
    return kind(
        in_features=["res4"],
        head=Given(logits, deltas),
        anchor_generator=anchors,
        anchor_matcher=None,
        box2box_transform=transforms[kind](weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=1,
        positive_fraction=1.0,
        pre_nms_topk=(before, before),
        post_nms_topk=(after, after),
        nms_thresh=0.7,
        min_box_size=4.0,
    ).eval()


def one_image(found: RPN, row: int, size: tuple[int, int], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The proposals of Caffe's layer for one image: boxes are removed one after another."""
    [logits], [deltas] = found.rpn_head.given
    [anchors] = found.anchor_generator([logits])
    scores = logits[row].permute(1, 2, 0).flatten()
    moves = deltas[row].view(-1, 4, *logits.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
    boxes = clip(found.box2box_transform.apply_deltas(moves, anchors.tensor), size, inclusive=True)
    large = (sides(boxes, inclusive=True) >= found.min_box_size * scale).all(dim=1)
    boxes, scores = boxes[large], scores[large]
    best = scores.argsort(descending=True, stable=True)[: found.pre_nms_topk[False]]
    boxes, scores = boxes[best], scores[best]
    kept = nms(boxes, scores, found.nms_thresh, found.inclusive_nms)[: found.post_nms_topk[False]]
    return boxes[kept], scores[kept]


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("kind", [CaffeRPN, MaskRCNNRPN, RPN])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(2, 3), (4, 5)]),
    topk=st.sampled_from([(7, 3), (40, 30), (500, 300)]),
    odd=st.sampled_from(["", "nan", "inf", "-inf", "small", "tiny"]),
)
def test_proposals_are_those_of_one_image_at_a_time(kernel, kind, seed, shape, topk, odd):
    """With equal scores, scores and boxes that are no numbers, small boxes, none at all, and fewer than asked."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 3, (2, 4, *shape), generator=random) / 2
    deltas = torch.randn(2, 16, *shape, generator=random) * 0.7
    if odd in ("nan", "inf", "-inf"):
        logits[torch.rand(logits.shape, generator=random) < 0.2] = float(odd)
        deltas[torch.rand(deltas.shape, generator=random) < 0.05] = float(odd)
    deltas.view(2, 4, 4, *shape)[:, :, 2:] -= {"small": 1.5, "tiny": 9.0}.get(odd, 0.0)
    found = network(kind, logits, deltas, *topk)
    size, scales = (shape[0] * 16, shape[1] * 16), [1.0, 1.7]
    images = ScaledImages(torch.zeros(2, 3, *size), [size, size])
    images.scales = scales
    features = {"res4": torch.zeros(2, 1, *shape)}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(rpn, "has_kernel", lambda boxes: kernel)
        batch = propose(found, images, features)
        if kind is RPN:
            [*expected] = [
                (own.proposal_boxes.tensor, own.objectness_logits) for own in found(images, features)[0]
            ]
        else:
            expected = [one_image(found, row, size, scale) for row, scale in enumerate(scales)]
    whole = [0.0, 0.0, size[1] - (kind is not RPN), size[0] - (kind is not RPN)]
    assert batch.boxes.shape == (2, min(topk[1], topk[0], logits[0].numel()), 4)
    for row, (boxes, scores) in enumerate(expected):
        count = int(batch.counts[row])
        assert torch.equal(batch.boxes[row, :count], boxes)
        torch.testing.assert_close(batch.scores[row, :count], scores, rtol=0, atol=0, equal_nan=True)
        assert (batch.boxes[row, count:] == torch.tensor(whole)).all()


@few
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(1, 25), min_size=1, max_size=3),
    bounds=st.sampled_from([(1, 4), (3, 3), (8, 30)]),
    inclusive=st.booleans(),
)
def test_selections_are_those_without_the_kernel(seed, counts, bounds, inclusive):
    """Of several images together, with equal probabilities and some that are no numbers."""
    rng, (low, high) = np.random.default_rng(seed), bounds
    batch = []
    for count in counts:
        corner = rng.uniform(0, 20, (2, count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (2, count, 2))], axis=2)
        scores = torch.from_numpy(rng.choice([*np.linspace(0, 0.9, 9), np.nan], (count, 3))).float()
        proposed, regressed = torch.from_numpy(boxes).float()
        batch.append(Proposals(proposed, regressed, scores, scores, scores))
    for rule in (CaffeSelection(low, high, inclusive=inclusive), SweepSelection(low, high, 0.4, 0.3, inclusive)):
        expected = rule.of_batch(batch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(per_class, "has_kernel", lambda boxes: True)
            patch.setattr(selection, "has_kernel", lambda boxes: True)
            found = rule.of_batch(batch)
        for one, other in zip(found, expected, strict=True):
            assert one.rows.tolist() == other.rows.tolist()
            assert torch.equal(one.boxes, other.boxes)
