"""The kernel of greedy non-maximum suppression on an NVIDIA GPU: one program per problem, no wait for the host.

A program holds the boxes and scores of its problem in registers. It takes the best box that still stands, drops
what overlaps it too much, and ends when none stands or enough were taken. A problem's scores are neighbours in
memory. Boxes that are sorted by score already, as the 6,000 of an image's region proposals, pass in groups: what
earlier groups kept is applied to a group before it is searched, and mostly the first groups fill the proposals.

IoU is computed with the operations of extract/detector/boxes.py, in their order and each rounded to float32: no
fused multiply-add, and a division that is rounded correctly. So the same boxes are dropped as on a CPU.

Shapes: I images with P boxes in all, V variants of an image's problem.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

OUT = tl.constexpr(-(2**31))  # sorts below every score
PRESORTED_BLOCK = 1024  # boxes at a time: 8,192 would not fit the registers


def greedy(
    boxes: Tensor,
    scores: Tensor,
    offsets: Tensor,
    limits: Tensor,
    longest: int,
    one: float,
    most: int | None,
    presorted: bool,
) -> tuple[Tensor, Tensor]:
    """See `extract.detector.suppression.greedy`; all tensors are on the GPU and contiguous.

    Args:
        boxes: (P, 4) float32.
        scores: (V, P) float32, or (1, P) where all variants have the same.
        offsets: (I + 1,) int64.
        limits: (V,) float32, or (1,) where all variants have the same.
        longest: boxes of the largest image.
        one: added to the sides of boxes.
        most: see there.
        presorted: see there.

    Returns:
        `kept` and `counts`; `counts` is empty where `most` is None.
    """
    assert boxes.is_contiguous()
    assert scores.is_contiguous()
    images, variants, total = len(offsets) - 1, max(len(scores), len(limits)), len(boxes)
    if most is not None:
        kept = boxes.new_zeros((images, variants, most), dtype=torch.int32)
        counts = boxes.new_zeros((images, variants), dtype=torch.int32)
    else:
        kept = boxes.new_zeros((variants, total), dtype=torch.bool)
        counts = kept.new_empty(0, dtype=torch.int32)
    if total:
        block = block_of(longest, presorted)
        with torch.cuda.device_of(boxes):
            _greedy[(images, variants)](
                boxes,
                scores,
                offsets,
                limits,
                kept.view(torch.uint8) if kept.dtype == torch.bool else kept,
                counts,
                total,
                variants,
                longest if most is None else most,
                one,
                own_scores=len(scores) > 1,
                own_limits=len(limits) > 1,
                ordered=most is not None,
                block=block,
                num_warps=warps_of(block),
                enable_fp_fusion=False,
            )
    return kept, counts


def block_of(longest: int, presorted: bool) -> int:
    """Places for boxes of a program: for all of an image, or for some of presorted ones at a time."""
    block = max(16, triton.next_power_of_2(longest))
    return min(block, PRESORTED_BLOCK) if presorted else block


def warps_of(block: int) -> int:
    """Warps of a program with so many places for boxes: four for each thread."""
    return min(32, max(1, block // 128))


@triton.jit
def _falls(left, top, right, bottom, area, corner, one, limit):  # type: ignore[no-untyped-def]  # inlined
    """Which boxes have an IoU above the limit with the box that `corner` points to."""
    x1, y1, x2, y2 = tl.load(corner), tl.load(corner + 1), tl.load(corner + 2), tl.load(corner + 3)
    width = tl.maximum(tl.minimum(right, x2) - tl.maximum(left, x1) + one, 0.0)
    height = tl.maximum(tl.minimum(bottom, y2) - tl.maximum(top, y1) + one, 0.0)
    shared = width * height
    return tl.div_rn(shared, area + (x2 - x1 + one) * (y2 - y1 + one) - shared) > limit


@triton.jit(do_not_specialize=["total", "variants", "most"])
def _greedy(
    boxes: tl.tensor,
    scores: tl.tensor,
    offsets: tl.tensor,
    limits: tl.tensor,
    kept: tl.tensor,
    counts: tl.tensor,
    total: tl.tensor,
    variants: tl.tensor,
    most: tl.tensor,
    one: tl.tensor,
    own_scores: tl.constexpr,
    own_limits: tl.constexpr,
    ordered: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """One image and variant; the arguments are those of `greedy`."""
    image = tl.program_id(0).to(tl.int64)
    variant = tl.program_id(1).to(tl.int64)
    first = tl.load(offsets + image)
    length = (tl.load(offsets + image + 1) - first).to(tl.int32)
    limit = tl.load(limits + (variant if own_limits else 0))
    column = scores + (variant * total if own_scores else 0) + first
    corners = boxes + first * 4
    places = kept + (image * variants + variant) * most if ordered else kept + variant * total + first

    taken = 0
    start = 0
    while (start < length) & (taken < most):
        row = start + tl.arange(0, block)
        inside = row < length
        left = tl.load(corners + row * 4, mask=inside, other=0.0)
        top = tl.load(corners + row * 4 + 1, mask=inside, other=0.0)
        right = tl.load(corners + row * 4 + 2, mask=inside, other=0.0)
        bottom = tl.load(corners + row * 4 + 3, mask=inside, other=0.0)
        area = (right - left + one) * (bottom - top + one)

        # Scores as integers of the same order: NaN above all, the two zeros equal, -inf and the padding out.
        score = tl.load(column + row, mask=inside, other=float("-inf"))
        bits = (score + 0.0).to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        key = tl.where(score != score, 0x7FFFFFFF, tl.where(score == float("-inf"), OUT, key))

        if ordered:
            tl.debug_barrier()  # what other threads have stored is read
            for earlier in range(0, taken):
                corner = corners + tl.load(places + earlier) * 4
                key = tl.where(_falls(left, top, right, bottom, area, corner, one, limit), OUT, key)

        best = tl.max(key, axis=0)
        while (best > OUT) & (taken < most):
            chosen = tl.min(tl.where(key == best, row, length), axis=0)
            falls = _falls(left, top, right, bottom, area, corners + chosen * 4, one, limit)
            key = tl.where(falls | (row == chosen), OUT, key)
            if ordered:
                tl.store(places + taken, chosen)
            else:
                tl.store(places + chosen, 1)
            taken += 1
            best = tl.max(key, axis=0)
        start += block
    if ordered:
        tl.store(counts + image * variants + variant, taken)
