import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch.utils._python_dispatch import TorchDispatchMode

from extract.detector import region_pooling
from extract.detector.region_pooling import pooled_groups

CHANNELS, SIDE = 5, 7
KINDS = ["ROIPool", "ROIAlignV2"]


@pytest.fixture
def maps():
    return torch.randn(3, CHANNELS, 9, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def boxes():
    """Of three images; the second has none."""
    corners = torch.rand(11, 2, generator=torch.Generator().manual_seed(1)) * 60
    both = torch.cat([corners, corners + 5 + corners.flip(0)], dim=1)
    return [Boxes(both[:4]), Boxes(both[:0]), Boxes(both[4:])]


def make_pooler(kind):
    return ROIPooler((SIDE, SIDE), scales=(1 / 16,), sampling_ratio=0, pooler_type=kind)


@pytest.mark.parametrize("regions", [1, 3, 4, 11, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_have_the_bits_of_one_call(maps, boxes, kind, regions):
    pooler = make_pooler(kind)
    groups = list(pooled_groups(pooler.level_poolers[0], maps, boxes, regions))
    assert [len(group) for group in groups[:-1]] == [regions] * (11 // regions - (11 % regions == 0))
    assert torch.equal(torch.cat(groups), pooler([maps], boxes))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_through_the_groups(maps, boxes, kind):
    pooler, gradients = make_pooler(kind), []
    for regions in (3, 100):
        inputs = maps.clone().requires_grad_()
        torch.cat(list(pooled_groups(pooler.level_poolers[0], inputs, boxes, regions))).square().sum().backward()
        gradients.append(inputs.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_no_region_is_one_empty_group(maps):
    none = [Boxes(torch.empty(0, 4))] * 3
    [empty] = pooled_groups(make_pooler("ROIPool").level_poolers[0], maps, none, 4)
    assert empty.shape == (0, CHANNELS, SIDE, SIDE)


def test_one_call_never_gives_more_numbers_than_the_operator_counts(maps, boxes, monkeypatch):
    layer = make_pooler("ROIPool").level_poolers[0]
    monkeypatch.setattr(region_pooling, "LIMIT", 7 * CHANNELS * SIDE * SIDE)
    assert len(list(pooled_groups(layer, maps, boxes, 7))) == 2
    with pytest.raises(AssertionError, match=r"1960 numbers pooled .* 1715 at most"):
        list(pooled_groups(layer, maps, boxes, 8))
    monkeypatch.setattr(region_pooling, "LIMIT", maps.numel() - 1)
    with pytest.raises(AssertionError, match="of 1620: 1619 at most"):
        list(pooled_groups(layer, maps, boxes, 1))


def test_heads_keep_to_the_limit_with_the_same_result(detector, monkeypatch):
    """As on a GPU and in training: all regions of a batch in as few calls as fit."""
    heads = detector.model.roi_heads
    maps = {"res4": torch.randn(3, 256, 8, 8, generator=torch.Generator().manual_seed(2))}
    corners = torch.rand(20, 2, generator=torch.Generator().manual_seed(3)) * 60
    boxes = [Boxes(part) for part in torch.cat([corners, corners + 40], dim=1).split([13, 2, 5])]
    monkeypatch.setattr(heads, "training", True)
    counts = []
    with heads.res5.register_forward_hook(lambda _, inputs, out: counts.append(len(out))), torch.no_grad():
        together = heads._pooled(maps, boxes)
        monkeypatch.setattr(region_pooling, "LIMIT", 8 * 512 * 6 * 6)  # res5 gives 512 maps, more than it takes
        in_groups = heads._pooled(maps, boxes)
    assert counts == [20, 8, 8, 4]
    torch.testing.assert_close(in_groups, together, atol=1e-4 * together.abs().max().item(), rtol=0)


class Conversions(TorchDispatchMode):
    """Counts conversions to another type of tensors with at least so many numbers."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.found = numbers, []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if operator is torch.ops.aten._to_copy.default and args[0].numel() >= self.numbers:
            self.found.append((args[0].dtype, result.dtype))
        return result


def test_half_precision_rounds_pooled_maps_once(detector, monkeypatch):
    """Not the positions of maxima, and not in each of the two convolutions that take the maps."""
    heads = detector.model.roi_heads
    monkeypatch.setitem(heads.pooler._modules, "level_poolers", make_pooler("ROIPool").level_poolers)
    maps = {"res4": torch.randn(1, 256, 8, 8).bfloat16()}
    boxes = [Boxes(torch.tensor([[0.0, 0.0, 90.0, 90.0]]).repeat(60, 1))]
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        Conversions(60 * 256 * 6 * 6) as conversions,
    ):
        heads._pooled(maps, boxes)
    assert conversions.found == [(torch.float32, torch.bfloat16)]
