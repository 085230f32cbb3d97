"""Scores and their gradients against loops over pairs, in float64, written from the paper's formulas."""

import math

import numpy as np
import pytest
import torch

from chan import scoring
from chan.packing import Packed, pack
from chan.pooling import make_pooling
from chan.scoring import best_regions, score_matrix, visual_hard_assignment

POOLINGS = ["max", "mean", "sum", "softmax", "lse"]
BETA = 0.2
LENGTHS = {  # regions of each image, words of each caption
    "ragged": ([3, 1, 5, 3], [2, 7, 1, 4, 2]),
    "even": ([4, 4, 4], [3, 3, 3]),
    "one of each": ([1], [1]),
    "one image": ([6], [5, 1]),
    "one caption": ([2, 3], [4]),
}


def sequences(lengths: list[int], seed: int, dim: int = 6) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    rows = [random.standard_normal((length, dim)) for length in lengths]
    return [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]


def packed(arrays: list[np.ndarray]) -> Packed:
    whole = pack([torch.from_numpy(array) for array in arrays])
    return whole.with_rows(whole.rows.requires_grad_())


def pooled(values: list[float], pooling: str) -> tuple[float, list[float]]:
    """The pooling of a few numbers and its derivative by each of them."""
    count = len(values)
    weights = [math.exp(value / BETA) for value in values]
    shares = [weight / sum(weights) for weight in weights]
    if pooling == "max":
        winner = values.index(max(values))
        return values[winner], [float(place == winner) for place in range(count)]
    if pooling == "mean":
        return sum(values) / count, [1 / count] * count
    if pooling == "sum":
        return sum(values), [1.0] * count
    if pooling == "lse":
        return math.log(sum(weights)), [share / BETA for share in shares]
    score = sum(share * value for share, value in zip(shares, values, strict=True))
    return score, [s * (1 + (v - score) / BETA) for s, v in zip(shares, values, strict=True)]


def loop(images: list[np.ndarray], captions: list[np.ndarray], upstream: np.ndarray, pooling: str) -> tuple:
    """Scores, and the gradients of sum(upstream * scores) by regions and words."""
    scores = np.zeros(upstream.shape)
    by_region = [np.zeros_like(image) for image in images]
    by_word = [np.zeros_like(caption) for caption in captions]
    for i, image in enumerate(images):
        for t, caption in enumerate(captions):
            winners, values = [], []
            for word in caption:
                similarities = [float(np.dot(region, word)) for region in image]
                winners.append(similarities.index(max(similarities)))
                values.append(max(similarities))
            scores[i, t], slopes = pooled(values, pooling)
            for word, (region, slope) in enumerate(zip(winners, slopes, strict=True)):
                by_region[i][region] += upstream[i, t] * slope * caption[word]
                by_word[t][word] += upstream[i, t] * slope * image[region]
    return scores, np.concatenate(by_region), np.concatenate(by_word)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("tile", [1, 8, 1 << 20])
def test_scores_and_gradients(pooling: str, case: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SIMILARITIES", tile)
    images, captions = (sequences(lengths, seed) for seed, lengths in enumerate(LENGTHS[case]))
    upstream = np.random.default_rng(2).standard_normal((len(images), len(captions)))
    upstream[upstream < -0.8] = 0  # a hinge gives many exact zeros, which the backward pass skips
    expected, by_region, by_word = loop(images, captions, upstream, pooling)

    regions, words = packed(images), packed(captions)
    scores = visual_hard_assignment(regions, words, make_pooling(pooling, BETA))
    scores.backward(torch.from_numpy(upstream))
    np.testing.assert_allclose(scores.detach(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(regions.rows.grad, by_region, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(words.rows.grad, by_word, rtol=1e-10, atol=1e-12)


def test_a_gradient_of_zero_is_zero() -> None:
    regions, words = packed(sequences([2, 3], 0)), packed(sequences([4, 1], 1))
    visual_hard_assignment(regions, words, make_pooling("lse", BETA)).mul(0).sum().backward()
    assert not regions.rows.grad.any()
    assert not words.rows.grad.any()


def test_winners_are_positions_within_the_image() -> None:
    images, captions = sequences([3, 1, 4], 0), sequences([2, 5], 1)
    best, winner = best_regions(packed(images), packed(captions))
    for column, image in enumerate(images):
        similarity = np.concatenate(captions) @ image.T
        np.testing.assert_array_equal(winner[:, column], similarity.argmax(1))
        np.testing.assert_allclose(best[:, column].detach(), similarity.max(1), rtol=1e-12)


def test_tiles_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    images, captions = packed(sequences([3, 1, 4, 2, 2], 0)), packed(sequences([2, 5, 1, 1, 3, 4], 1))
    images, captions = (side.with_rows(side.rows.detach()) for side in (images, captions))
    pooling = make_pooling("lse", BETA)

    def scorer(regions: Packed, words: Packed) -> torch.Tensor:
        return visual_hard_assignment(regions, words, pooling)

    whole = scorer(images, captions)
    for regions, tile in ((1, 1), (8, 4), (9, 2)):
        monkeypatch.setattr(scoring, "REGIONS", regions)
        monkeypatch.setattr(scoring, "CAPTIONS", tile)
        torch.testing.assert_close(score_matrix(images, captions, scorer), whole, rtol=1e-12, atol=0)


def test_inputs_are_not_written_into() -> None:
    images, captions = packed(sequences([3, 1], 0)), packed(sequences([2, 2], 1))
    before = images.rows.detach().clone(), captions.rows.detach().clone()
    for pooling in POOLINGS:
        visual_hard_assignment(images, captions, make_pooling(pooling, BETA)).sum().backward()
    assert torch.equal(images.rows, before[0])
    assert torch.equal(captions.rows, before[1])


def test_negative_similarities_beat_nothing_that_is_not_there() -> None:
    """An image whose regions all point away from a word scores below 0, whatever its neighbours have."""
    word = torch.tensor([[1.0, 0.0]])
    images = pack([-word, torch.cat([-word, torch.tensor([[-0.6, 0.8]]), torch.tensor([[-0.8, 0.6]])])])
    scores = visual_hard_assignment(images, pack([word]), make_pooling("sum", BETA))
    torch.testing.assert_close(scores, torch.tensor([[-1.0], [-0.6]]))
