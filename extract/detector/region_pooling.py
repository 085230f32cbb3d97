"""Regions of feature maps, pooled to one size by torchvision's RoIPool or RoIAlign.

On an NVIDIA GPU a kernel takes the place of RoIPool in half precision (extract/detector/region_pooling_triton.py).

Shapes: B images, R regions of all of them, C channels of an h x w feature map, s x s numbers of a pooled channel.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import Boxes
from torch.nn.functional import pad
from torchvision.ops import RoIPool

from data_tools.devices import runs_triton

LIMIT = 2**31 - 1
"""Numbers of a map at most. On a GPU both operators count in 32 bits: given more, they end at once and the zeros
with which they began are the result."""


def pooled_groups(
    pooler: RoIPool | ROIAlign, maps: torch.Tensor, boxes: Sequence[Boxes], regions: int
) -> Iterator[torch.Tensor]:
    """The pooled maps of all regions, image by image, in groups of at most `regions`: (r, C, s, s) each.

    Under autocast they have its type: torchvision pools in float32, since it takes boxes and maps of one type, and
    they are rounded once. Autocast itself would convert RoIPool's positions of maxima too, and the pooled
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
    if _pools_by_kernel(pooler, maps, kind):
        maps = maps.contiguous(memory_format=torch.channels_last)
        for group in numbered(boxes).split(regions):
            yield _by_kernel(maps, group, pooler.output_size, pooler.spatial_scale)
        return
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


def _pools_by_kernel(pooler: RoIPool | ROIAlign, maps: torch.Tensor, kind: torch.dtype) -> bool:
    differentiable = maps.requires_grad and torch.is_grad_enabled()
    return isinstance(pooler, RoIPool) and maps.dtype == kind and not differentiable and _has_kernel(maps)


def _has_kernel(maps: torch.Tensor) -> bool:
    """Whether the kernel pools such maps."""
    return maps.is_cuda and maps.dtype in (torch.bfloat16, torch.float16) and _kernel_runs(maps.device)


@cache
def _kernel_runs(device: torch.device) -> bool:
    """Whether the kernel compiles and runs, tried once per device."""

    def trial() -> None:
        maps, region = torch.zeros(1, 8, 1, 1, device=device), torch.zeros(1, 5, device=device)
        _by_kernel(maps.half(), region, (1, 1), 1.0)

    return runs_triton(device, trial, "RoIPool")


def _by_kernel(maps: torch.Tensor, regions: torch.Tensor, size: tuple[int, int], scale: float) -> torch.Tensor:
    from extract.detector.region_pooling_triton import roi_pool  # Triton is not installed everywhere

    return roi_pool(maps, regions, size, scale)


def _pool(pooler: RoIPool | ROIAlign, maps: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """(r, C, s, s) of (B, C, h, w) maps and (r, 5) regions: one call of the operator."""
    height, width = pooler.output_size
    numbers = len(regions) * maps.shape[1] * height * width
    assert max(numbers, maps.numel()) <= LIMIT, f"{numbers} numbers pooled of {maps.numel()}: {LIMIT} at most"
    return pooler(maps, regions)
