"""RoIPool on an NVIDIA GPU, of half-precision maps with channels last.

torchvision's operator takes float32 maps in the other layout. It writes float32 and the position of each maximum,
and that is then rounded: 14 bytes for each number, where this kernel writes two. The bins and the numbers
are torchvision's.

Shapes: B images, R regions of all of them, C channels of an h x w feature map, s x t numbers of a pooled channel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_CHANNELS = 1024  # of one program
PER_WARP = 256  # channels: 16 bytes of each thread


def roi_pool(maps: Tensor, regions: Tensor, output_size: tuple[int, int], scale: float) -> Tensor:
    """(R, C, s, t) maxima in the bins of regions, in the maps' type and with channels last; 0 in an empty bin.

    Args:
        maps: (B, C, h, w), contiguous with channels last.
        regions: (R, 5) float32, contiguous: the number of the image, then a box in pixels of the network's input.
        output_size: s and t.
        scale: pixels of the maps per pixel of the input.
    """
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert regions.is_contiguous()
    assert regions.dtype == torch.float32
    channels, height, width = maps.shape[1:]
    rows, columns = output_size
    pooled = maps.new_empty((len(regions), rows, columns, channels))
    if pooled.numel():
        block = min(MOST_CHANNELS, triton.next_power_of_2(channels))
        with torch.cuda.device_of(maps):
            _roi_pool[(len(regions) * rows * columns, triton.cdiv(channels, block))](
                maps,
                regions,
                pooled,
                height,
                width,
                channels,
                scale,
                rows=rows,
                columns=columns,
                block=block,
                num_warps=max(1, block // PER_WARP),
                enable_fp_fusion=False,  # rounded as torchvision rounds
            )
    return pooled.permute(0, 3, 1, 2)


@triton.jit
def _rounded(number: tl.tensor) -> tl.tensor:
    """The nearest integer, of two the one farther from zero, as C's `round`."""
    size = tl.abs(number)
    whole = tl.floor(size)
    whole += tl.where(size - whole >= 0.5, 1.0, 0.0)
    return tl.where(number < 0, -whole, whole).to(tl.int32)


@triton.jit
def _bin(place: tl.tensor, start: tl.tensor, end: tl.tensor, count: tl.constexpr, limit: tl.tensor) -> tl.tensor:
    """First row of a bin, and the one after its last; or columns. The last pixel belongs to a region."""
    size = tl.math.div_rn(tl.maximum(end - start + 1, 1).to(tl.float32), count * 1.0)
    first = tl.floor(place.to(tl.float32) * size).to(tl.int32) + start
    last = tl.ceil((place + 1).to(tl.float32) * size).to(tl.int32) + start
    return tl.minimum(tl.maximum(first, 0), limit), tl.minimum(tl.maximum(last, 0), limit)


@triton.jit(do_not_specialize=["height", "width"])
def _roi_pool(
    maps: tl.tensor,
    regions: tl.tensor,
    pooled: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    scale: tl.tensor,
    rows: tl.constexpr,
    columns: tl.constexpr,
    block: tl.constexpr,
) -> None:
    # A program: up to `block` channels of one bin. All places are 64-bit: there may be more than 2^31 numbers.
    place = tl.program_id(0).to(tl.int64)
    box = regions + place // (rows * columns) * 5
    within = (place % (rows * columns)).to(tl.int32)
    image = tl.load(box).to(tl.int64)
    left = _rounded(tl.load(box + 1) * scale)
    top = _rounded(tl.load(box + 2) * scale)
    right = _rounded(tl.load(box + 3) * scale)
    bottom = _rounded(tl.load(box + 4) * scale)
    top, bottom = _bin(within // columns, top, bottom, rows, height)
    left, right = _bin(within % columns, left, right, columns, width)

    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    largest = tl.full((block,), -3.4028234663852886e38, tl.float32)  # a NaN is not larger
    for y in range(top, bottom):
        for x in range(left, right):
            pixel = maps + ((image * height + y) * width + x) * channels
            largest = tl.maximum(largest, tl.load(pixel + channel, mask=inside, other=0.0).to(tl.float32))
    empty = (bottom <= top) | (right <= left)
    largest = tl.where(empty, 0.0, largest)
    tl.store(pooled + place * channels + channel, largest.to(pooled.dtype.element_ty), mask=inside)
