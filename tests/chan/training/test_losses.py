"""Losses against loops over the pairs of a batch, in plain Python."""

import math

import numpy as np
import pytest
import torch

from chan.training.losses import contrastive, infonce, negative_pairs

IMAGES = {"distinct": [0, 1, 2, 3, 4], "duplicates": [0, 1, 0, 2, 1], "one image": [3, 3, 3]}


def batch(images: list[int]) -> tuple[np.ndarray, torch.Tensor]:
    scores = np.random.default_rng(len(set(images))).normal(scale=0.3, size=(len(images), len(images)))
    return scores, torch.from_numpy(scores).requires_grad_()


def negatives_of(images: list[int], row: int, mask: bool) -> list[int]:
    return [j for j in range(len(images)) if j != row and not (mask and images[j] == images[row])]


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("hardest", [True, False])
@pytest.mark.parametrize("case", IMAGES)
def test_contrastive(case: str, hardest: bool, mask: bool) -> None:
    images, margin = IMAGES[case], 0.2
    scores, tensor = batch(images)
    expected = 0.0
    for i in range(len(images)):
        others = negatives_of(images, i, mask)
        for violations in (
            [max(0.0, margin + scores[i, j] - scores[i, i]) for j in others],
            [max(0.0, margin + scores[j, i] - scores[i, i]) for j in others],
        ):
            expected += max(violations, default=0.0) if hardest else sum(violations)
    found = contrastive(tensor, negative_pairs(torch.tensor(images), mask), margin, hardest)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("case", IMAGES)
def test_infonce(case: str, margin: float, mask: bool) -> None:
    images, tau = IMAGES[case], 0.3
    scores, tensor = batch(images)
    expected = 0.0
    for i in range(len(images)):
        for negatives in (
            [scores[i, j] for j in negatives_of(images, i, mask)],
            [scores[j, i] for j in negatives_of(images, i, mask)],
        ):
            terms = [math.exp((negative - scores[i, i] + margin) / tau) for negative in negatives]
            expected += math.log(1 + sum(terms)) / len(images)
    found = infonce(tensor, negative_pairs(torch.tensor(images), mask), margin, tau)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_infonce_at_the_published_temperature_does_not_overflow() -> None:
    scores = torch.tensor([[-1.0, 40.0], [40.0, -1.0]], requires_grad=True)
    loss = infonce(scores, negative_pairs(torch.arange(2), True), margin=0.05, temperature=0.01)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() == pytest.approx(2 * 4105, rel=1e-6)  # (40 + 1 + 0.05) / 0.01, in both directions
    assert torch.isfinite(gradient).all()


def test_masked_duplicates_have_no_gradient() -> None:
    images = torch.tensor([0, 1, 0])
    for loss in (
        lambda s, n: contrastive(s, n, 1.0, hardest=False),
        lambda s, n: contrastive(s, n, 1.0, hardest=True),
        lambda s, n: infonce(s, n, 1.0, 0.5),
    ):
        scores = torch.zeros(3, 3, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(scores, negative_pairs(images, True)), scores)
        assert gradient[0, 2] == gradient[2, 0] == 0
        assert gradient[0, 1] > 0
