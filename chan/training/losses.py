"""Losses on the scores of a batch of matching pairs.

Shapes: B pairs; `scores` is (B, B), images by captions, with the matching pairs on the diagonal. `negatives`
is (B, B) bool: which of the other pairs do not match.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From scores (B, B) and negatives (B, B) to a loss ()."""


def negative_pairs(images: Tensor, mask_duplicates: bool) -> Tensor:
    """(B, B) bool: the pairs that count as negatives, from the (B,) image of each pair.

    All but the diagonal. With `mask_duplicates` other captions of the same image are excluded too; the published
    code counts them as negatives.

    >>> negative_pairs(torch.tensor([4, 7, 4]), mask_duplicates=True).int()
    tensor([[0, 1, 0],
            [1, 0, 1],
            [0, 1, 0]], dtype=torch.int32)
    """
    if mask_duplicates:
        return images[:, None] != images[None, :]
    return ~torch.eye(len(images), dtype=torch.bool, device=images.device)


def contrastive(scores: Tensor, negatives: Tensor, margin: float, hardest: bool) -> Tensor:
    """(): the hinge loss in both directions, summed over the batch.

    `hardest` counts only the largest violation of each image and of each caption (VSE++, Faghri et al. 2018,
    equation 6); otherwise all violations are summed (equation 5).

    >>> scores = torch.tensor([[0.9, 0.8], [0.2, 0.5]])  # the second caption scores higher with the first image
    >>> contrastive(scores, negative_pairs(torch.arange(2), True), margin=0.2, hardest=True)
    tensor(0.6000)
    """
    positive = scores.diagonal()
    of_images = (margin + scores - positive[:, None]).clamp(min=0) * negatives
    of_captions = (margin + scores - positive[None, :]).clamp(min=0) * negatives
    if hardest:
        return of_images.amax(1).sum() + of_captions.amax(0).sum()
    return of_images.sum() + of_captions.sum()


def infonce(scores: Tensor, negatives: Tensor, margin: float, temperature: float) -> Tensor:
    """(): InfoNCE, log(1 + sum over negatives of exp((negative - positive + margin) / temperature)).

    Averaged over the batch and summed over both directions. The 1 is the positive, without a margin; computed as
    the term 0 of a log-sum-exp, the loss stays finite at any temperature.
    """
    positive = scores.diagonal()
    of_images = (scores - positive[:, None] + margin) / temperature
    of_captions = (scores - positive[None, :] + margin) / temperature
    return _log_one_plus(of_images, negatives, 1).mean() + _log_one_plus(of_captions, negatives, 0).mean()


def _log_one_plus(exponents: Tensor, valid: Tensor, dim: int) -> Tensor:
    """log(1 + sum of exp over the valid ones) along `dim`; the diagonal, which is never valid, gives the 1."""
    exponents = exponents.masked_fill(~valid, -torch.inf)
    diagonal = torch.eye(len(exponents), dtype=torch.bool, device=exponents.device)
    return torch.logsumexp(exponents.masked_fill(diagonal, 0.0), dim)
