"""The kernel of RoIPool in Triton's interpreter, on the CPU, against a loop in float64 and against torchvision.

The interpreter must be chosen before Triton is imported, so `test_region_pooling_triton.py` runs these in a
process of their own. A program takes it about a hundredth of a second.
"""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_pool as torchvisions

from extract.detector import region_pooling_triton
from extract.detector.region_pooling_triton import roi_pool

SCALE = 1 / 16
SHAPE = (2, 12, 9, 7)
EDGES = {
    "inside": [17.0, 33.0, 80.0, 70.0],
    "halves": [8.0, 24.0, 72.0, 88.0],  # 0.5, 1.5, 4.5 and 5.5 pixels of the map
    "just below a half": [7.9999995, 23.999998, 72.0, 88.0],
    "the whole map": [0.0, 0.0, 111.0, 143.0],
    "beyond all sides": [-90.0, -40.0, 400.0, 500.0],
    "outside": [300.0, 300.0, 400.0, 400.0],
    "left of the map": [-60.0, 10.0, -20.0, 60.0],
    "one pixel": [50.0, 50.0, 50.0, 50.0],
    "turned around": [80.0, 70.0, 17.0, 33.0],
    "negative halves": [-8.0, -24.0, 40.0, 56.0],
}


def maps_of(kind: torch.dtype, shape: tuple[int, ...] = SHAPE) -> Tensor:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)
    return maps.contiguous(memory_format=torch.channels_last)


def nearest(number: float) -> int:
    """Of two the one farther from zero."""
    size = math.floor(abs(Fraction(number)) + Fraction(1, 2))
    return size if number >= 0 else -size


def edges(start: int, end: int, count: int, limit: int) -> list[tuple[int, int]]:
    """Of each bin, with exact fractions; a region without extent is one pixel."""
    size = Fraction(max(end - start + 1, 1), count)
    pairs = [(math.floor(place * size) + start, math.ceil((place + 1) * size) + start) for place in range(count)]
    return [(min(max(first, 0), limit), min(max(last, 0), limit)) for first, last in pairs]


def loop(maps: Tensor, regions: Tensor, size: tuple[int, int]) -> Tensor:
    """(R, C, s, t) in float64, a number at a time."""
    result = torch.zeros(len(regions), maps.shape[1], *size, dtype=torch.double)
    for region, (image, *corners) in enumerate(regions.tolist()):
        x1, y1, x2, y2 = (nearest(corner * SCALE) for corner in corners)
        for row, (top, bottom) in enumerate(edges(y1, y2, size[0], maps.shape[2])):
            for column, (left, right) in enumerate(edges(x1, x2, size[1], maps.shape[3])):
                numbers = maps[int(image), :, top:bottom, left:right].double().flatten(1)
                if numbers.shape[1]:
                    result[region, :, row, column] = numbers.max(dim=1).values
    return result


@pytest.mark.parametrize(("kind", "size"), [(torch.bfloat16, (4, 4)), (torch.float16, (8, 2))])
def test_the_maxima_are_the_loops_and_torchvisions(size: tuple[int, int], kind: torch.dtype) -> None:
    """Bins of 4, 8 and 2 are exact in float32, so that fractions have the same edges."""
    maps = maps_of(kind)
    regions = torch.tensor([[float(place % 2), *box] for place, box in enumerate(EDGES.values())])
    found = roi_pool(maps, regions, size, SCALE)
    assert found.dtype == kind
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.double(), loop(maps, regions, size))
    assert torch.equal(found, torchvisions(maps.float(), regions, size, SCALE).to(kind))
    assert (found == 0).flatten(1).all(dim=1).sum() == 2  # these do not lie on the map


@pytest.mark.parametrize(("size", "count", "scale"), [((14, 14), 1, SCALE), ((7, 3), 7, 0.07)])
def test_bins_are_rounded_as_torchvision_rounds_them(size: tuple[int, int], count: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=rng) * 120 - 10
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=rng) * 120 - 5], dim=1)
    regions = torch.cat([torch.randint(0, 2, (count, 1), generator=rng).float(), boxes], dim=1)
    maps = maps_of(torch.float16)
    expected = torchvisions(maps.float(), regions, size, scale).half()
    assert torch.equal(roi_pool(maps, regions, size, scale), expected)


@pytest.mark.parametrize("channels", [1, 21])
def test_channels_are_shared_out_among_programs(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_pooling_triton, "MOST_CHANNELS", 8)
    maps, regions = maps_of(torch.float16, (1, channels, 6, 7)), torch.tensor([[0.0, 3.0, 9.0, 70.0, 90.0]])
    expected = torchvisions(maps.float(), regions, (3, 2), SCALE).half()
    assert torch.equal(roi_pool(maps, regions, (3, 2), SCALE), expected)


def test_not_a_number_is_never_the_largest() -> None:
    maps = maps_of(torch.float16)
    maps[0, :4, ::2] = torch.nan
    maps[0, 4:8] = torch.nan
    maps[0, 8:] = -torch.inf
    regions = torch.tensor([[0.0, 0.0, 0.0, 100.0, 100.0]])
    expected = torchvisions(maps.float(), regions, (2, 2), SCALE).half()
    assert torch.equal(roi_pool(maps, regions, (2, 2), SCALE), expected)


def test_no_region() -> None:
    assert roi_pool(maps_of(torch.float16), torch.zeros(0, 5), (3, 2), SCALE).shape == (0, 12, 3, 2)
