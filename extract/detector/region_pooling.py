"""Regions of feature maps, pooled to one size by torchvision's RoIPool or RoIAlign.

Shapes: B images, R regions of all of them, C channels of an h x w feature map, s x s numbers of a pooled channel.
"""

from collections.abc import Iterator, Sequence

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import Boxes
from torch.nn.functional import pad
from torchvision.ops import RoIPool

LIMIT = 2**31 - 1
"""Numbers of a map at most. On a GPU both operators count in 32 bits: given more, they end at once and the zeros
with which they began are the result."""


def pooled_groups(
    pooler: RoIPool | ROIAlign, maps: torch.Tensor, boxes: Sequence[Boxes], regions: int
) -> Iterator[torch.Tensor]:
    """The pooled maps of all regions, image by image, in groups of at most `regions`: (r, C, s, s) each.

    Under autocast they have its type: they are pooled in float32, since torchvision takes boxes and maps of one
    type, and are rounded once. Autocast itself would convert RoIPool's positions of maxima too, and the pooled
    maps in each layer that takes them.

    Args:
        pooler: the operator, as Detectron2 builds it for one feature map.
        maps: (B, C, h, w).
        boxes: of each image, in pixels of the network's input.
        regions: how many are pooled together.
    """
    device = maps.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    # channels last, as a GPU's convolutions take them; on a CPU that has no benefit
    layout = torch.contiguous_format if device == "cpu" else torch.channels_last
    maps = maps.float()
    for group in numbered(boxes).split(regions):
        with torch.autocast(device, enabled=False):
            pooled = _pool(pooler, maps, group)
        yield pooled.to(kind, memory_format=layout)


def numbered(boxes: Sequence[Boxes]) -> torch.Tensor:
    """(R, 5): the number of its image before each of the (R, 4) boxes, as torchvision takes them.

    Detectron2's function for it waits for a GPU twice.

    >>> numbered([Boxes(torch.tensor([[0.0, 1.0, 2.0, 3.0]])), Boxes(torch.tensor([[4.0, 5.0, 6.0, 7.0]]))])
    tensor([[0., 0., 1., 2., 3.],
            [1., 4., 5., 6., 7.]])
    """
    return torch.cat([pad(of_image.tensor, (1, 0), value=image) for image, of_image in enumerate(boxes)])


def _pool(pooler: RoIPool | ROIAlign, maps: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """(r, C, s, s) of (B, C, h, w) maps and (r, 5) regions: one call of the operator."""
    height, width = pooler.output_size
    numbers = len(regions) * maps.shape[1] * height * width
    assert max(numbers, maps.numel()) <= LIMIT, f"{numbers} numbers pooled of {maps.numel()}: {LIMIT} at most"
    return pooler(maps, regions)
