"""Greedy non-maximum suppression in every class at once.

Shapes: P proposals of one image, C object classes (background left out).
"""

from collections.abc import Sequence

import torch

from extract.detector.boxes import suppresses
from extract.detector.suppression import greedy, has_kernel, nearest_limit

WORD = 63  # bits of an int64 that can be shifted without reaching its sign


def confidences(
    boxes: Sequence[torch.Tensor], probabilities: Sequence[torch.Tensor], threshold: float, inclusive: bool
) -> list[torch.Tensor]:
    """For each image (P,) the best probability of each proposal among the classes in which it survives, or 0.

    >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]])
    >>> confidences([boxes], [torch.tensor([[0.4, 0.9], [0.8, 0.7]])], 0.5, inclusive=False)
    [tensor([0.9000, 0.8000])]

    On a GPU the probabilities are transposed once for all images, since one class's are read together, and one
    kernel suppresses in all classes of all images; the number of operations does not depend on the images.
    """
    if has_kernel(boxes[0]):
        lengths, of_class = [len(own) for own in boxes], torch.cat(list(probabilities)).T.contiguous()
        limit = nearest_limit(threshold, inclusive)
        kept, _ = greedy(torch.cat(list(boxes)), of_class, lengths, [limit], inclusive)
        return list(torch.where(kept, of_class, 0.0).amax(dim=0).split(lengths))
    survives = per_class_nms(boxes, probabilities, threshold, inclusive)
    return [torch.where(kept, own, 0.0).amax(dim=1) for kept, own in zip(survives, probabilities, strict=True)]


def per_class_nms(
    boxes: Sequence[torch.Tensor], probabilities: Sequence[torch.Tensor], threshold: float, inclusive: bool
) -> list[torch.Tensor]:
    """For each image (P, C) whether its (P, 4) boxes survive greedy suppression in each class of (P, C).

    All classes share the boxes of an image, so one overlap matrix serves them all, and all classes of all images
    advance together: at step r each class looks at its r-th most probable proposal and, if that still stands,
    suppresses what overlaps it. There are as many steps as the image with the most proposals has, in place of C
    separate suppressions per image, on sets of proposals packed into the bits of integers.

    >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]])
    >>> per_class_nms([boxes], [torch.tensor([[0.4, 0.9], [0.9, 0.4]])], 0.5, inclusive=False)[0]
    tensor([[False,  True],
            [ True, False]])
    """
    longest = max(map(len, boxes))
    victims, order = [], []
    for image, (own_boxes, own) in enumerate(zip(boxes, probabilities, strict=True)):
        missing = longest - len(own)
        suppress = suppresses(own_boxes, threshold, inclusive)
        suppress.fill_diagonal_(False)
        victims.append(_pack(torch.nn.functional.pad(suppress, (0, missing, 0, missing))))
        ranked = torch.argsort(own.T.contiguous(), dim=1, descending=True, stable=True).T
        padding = torch.arange(len(own), longest, device=own.device)  # comes last and suppresses no proposal
        order.append(torch.cat([ranked, padding[:, None].expand(-1, own.shape[1])]) + image * longest)
    suppressed = _suppressed(torch.cat(victims), torch.cat(order, dim=1), longest)
    images = suppressed.split([own.shape[1] for own in probabilities])
    return [~_unpack(own, len(of_image)).T for own, of_image in zip(images, boxes, strict=True)]


def _suppressed(victims: torch.Tensor, order: torch.Tensor, longest: int) -> torch.Tensor:
    """(classes, words) the set of proposals that is suppressed in each class.

    Args:
        victims: (images x longest, words) the set that each proposal suppresses, as `_pack` makes it.
        order: (longest, classes) each class's rows of `victims`, the most probable first.
        longest: rows per image.
    """
    places = order % longest
    words, bits = (places // WORD)[:, :, None], places % WORD  # where each candidate's own bit is
    suppressed = victims.new_zeros(order.shape[1], victims.shape[1])
    for candidates, word, bit in zip(order, words, bits, strict=True):  # (classes,) one proposal per class
        fallen = (suppressed.gather(1, word)[:, 0] >> bit) & 1
        suppressed |= victims[candidates] & (fallen - 1)[:, None]  # fallen - 1 has all bits set where it is 0
    return suppressed


def _pack(sets: torch.Tensor) -> torch.Tensor:
    """(n, P) bool as (n, words) int64."""
    padding = -sets.shape[1] % WORD
    padded = torch.nn.functional.pad(sets, (0, padding)).view(len(sets), -1, WORD).long()
    return (padded << torch.arange(WORD, device=sets.device)).sum(dim=2)


def _unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """(n, words) int64 as (n, count) bool."""
    bits = (packed[:, :, None] >> torch.arange(WORD, device=packed.device)) & 1
    return bits.view(len(packed), -1)[:, :count].bool()
