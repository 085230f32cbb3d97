"""Scores and their gradients against loops over pairs, in float64, written from the paper's formulas.

The loop takes one image and one caption at a time, as plain matrices, and autograd's derivative of it.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from chan.packing import Packed, pack
from chan.scoring import hard_assignment
from chan.scoring import pairwise as scoring
from chan.scoring.codings import CODINGS, make_coding
from chan.scoring.hard_assignment import best_keys
from chan.scoring.pairwise import Scorer, pairwise_scores
from chan.scoring.soft_assignment import NORMS

POOLINGS = ["max", "mean", "sum", "softmax", "lse", "scan_lse"]
ALPHA, BETA, LAMBDA_SOFTMAX, LAMBDA_LSE = 0.3, 0.2, 4.0, 5.0
LENGTHS = {  # regions of each image, words of each caption
    "ragged": ([3, 1, 5, 3], [2, 7, 1, 4, 2]),
    "even": ([4, 4, 4], [3, 3, 3]),
    "one of each": ([1], [1]),
    "one image": ([6], [5, 1]),
    "one caption": ([2, 3], [4]),
    "long": ([10, 21], [1, 8]),
}


def sequences(lengths: list[int], seed: int, dim: int = 6) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    rows = [random.standard_normal((length, dim)) for length in lengths]
    return [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]


def packed(arrays: list[np.ndarray]) -> Packed:
    whole = pack([torch.from_numpy(array) for array in arrays])
    return whole.with_rows(whole.rows.requires_grad_())


def _number(value: Tensor) -> float:
    return value.detach().item()


def coded(image: Tensor, caption: Tensor, coding: str, norm: str = "clipped_l2norm") -> list[Tensor]:
    """The values of one pair, before pooling: one for each word (vha, t2i) or region (tha, vsa, i2t)."""
    values = []
    if coding == "vha":
        for word in caption:
            values.append(max((region @ word for region in image), key=_number))
    elif coding == "tha":
        for region in image:
            values.append(max((region @ word for word in caption), key=_number))
    elif coding == "vsa":
        for region in image:
            weights = [torch.exp((region @ word) / ALPHA) for word in caption]
            attended = sum(w * word for w, word in zip(weights, caption, strict=True)) / sum(weights)
            values.append((region @ attended) / torch.sqrt(attended @ attended))
    elif coding == "t2i":
        values = by_attention(list(caption), list(image), norm)
    else:
        values = by_attention(list(image), list(caption), norm)
    return values


def by_attention(queries: list[Tensor], keys: list[Tensor], norm: str) -> list[Tensor]:
    """SCAN (Lee et al. 2018, equations 4 to 6, 10 to 12): each query's cosine with the keys that it attends to."""
    table = [[key @ query for query in queries] for key in keys]
    if norm.startswith("clipped"):
        table = [[s if s > 0 else 0.1 * s for s in row] for row in table]
    for row in table:
        if norm.endswith("l2norm"):
            sizes = [torch.stack([s * s for s in row]).sum().sqrt()] * len(row)
        elif norm.endswith("l1norm"):
            sizes = [torch.stack(row).abs().sum() + 1e-8] * len(row)
        elif norm == "softmax":
            sizes = [torch.stack(row).exp().sum() * s / torch.exp(s) for s in row]
        else:
            sizes = [torch.ones(())] * len(row)
        row[:] = [s / size for s, size in zip(row, sizes, strict=True)]
    values = []
    for place, query in enumerate(queries):
        weights = [torch.exp(LAMBDA_SOFTMAX * row[place]) for row in table]
        mixed = sum(w * key for w, key in zip(weights, keys, strict=True)) / sum(weights)
        values.append((query @ mixed) / torch.sqrt((mixed @ mixed) * (query @ query)))
    return values


def pooled(values: list[Tensor], pooling: str) -> Tensor:
    if pooling == "max":
        return max(values, key=_number)
    if pooling in ("mean", "sum"):
        return torch.stack(values).sum() / (len(values) if pooling == "mean" else 1)
    if pooling == "scan_lse":
        return torch.log(torch.stack([torch.exp(LAMBDA_LSE * value) for value in values]).sum()) / LAMBDA_LSE
    weights = [torch.exp(value / BETA) for value in values]
    if pooling == "lse":
        return torch.log(torch.stack(weights).sum())
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum() / torch.stack(weights).sum()


def by_hand(
    images: list[np.ndarray],
    captions: list[np.ndarray],
    upstream: np.ndarray,
    how: tuple[str, str],
    norm: str = "clipped_l2norm",
):
    """Scores, and the gradients of sum(upstream * scores) by regions and words."""
    regions = [torch.from_numpy(image).requires_grad_() for image in images]
    words = [torch.from_numpy(caption).requires_grad_() for caption in captions]
    scores = torch.stack(
        [torch.stack([pooled(coded(i, c, how[0], norm), how[1]) for c in words]) for i in regions]
    )
    scores.backward(torch.from_numpy(upstream))
    return scores.detach(), *(
        torch.cat([one.grad for one in side if one.grad is not None]) for side in (regions, words)
    )


def packed_scores(images: Packed, captions: Packed, **options: Any) -> Tensor:
    return pairwise_scores(images.rows, images.offsets, captions.rows, captions.offsets, **options)


@pytest.mark.parametrize(("coding", "pooling"), list(itertools.product(CODINGS, POOLINGS)))
@pytest.mark.parametrize("case", LENGTHS)
def test_scores_and_gradients(coding: str, pooling: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_scores_and_gradients(coding, pooling, LENGTHS[case], monkeypatch)


def test_scores_and_gradients_of_10_to_100_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    check_scores_and_gradients("t2i", "lse", ([10, 100, 37], [1, 12, 5]), monkeypatch)


@pytest.mark.parametrize(("coding", "norm"), list(itertools.product(["t2i", "i2t"], NORMS)))
def test_every_normalisation_of_similarities(coding: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_scores_and_gradients(coding, "scan_lse", LENGTHS["ragged"], monkeypatch, norm)


def check_scores_and_gradients(
    coding: str,
    pooling: str,
    case: tuple[list[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    norm: str = "clipped_l2norm",
) -> None:
    images, captions = (sequences(lengths, seed) for seed, lengths in enumerate(case))
    upstream = np.random.default_rng(2).standard_normal((len(images), len(captions)))
    upstream[upstream < -0.8] = 0  # a hinge gives many exact zeros, which the backward pass skips
    expected, by_region, by_word = by_hand(images, captions, upstream, (coding, pooling), norm)
    options: dict[str, Any] = {"coding": coding, "pooling": pooling, "alpha": ALPHA, "beta": BETA}
    options |= {"similarity_norm": norm, "lambda_softmax": LAMBDA_SOFTMAX, "lambda_lse": LAMBDA_LSE}
    for tile in (1, 30, 1 << 20):
        monkeypatch.setattr(hard_assignment, "PANEL_SIMILARITIES", tile)
        monkeypatch.setattr(hard_assignment, "PANEL_QUERIES", max(1, tile // 10))
        monkeypatch.setattr(scoring, "SOFT_TILE_SIMILARITIES", tile)
        monkeypatch.setattr(scoring, "TILE_REGIONS", tile)
        monkeypatch.setattr(scoring, "TILE_WORDS", max(1, tile // 3))
        monkeypatch.setattr(scoring, "SOFT_TILE_WORDS", max(1, tile // 6))
        regions, words = packed(images), packed(captions)
        scores = packed_scores(regions, words, **options)
        scores.backward(torch.from_numpy(upstream))
        torch.testing.assert_close(scores.detach(), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(regions.rows.grad, by_region, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(words.rows.grad, by_word, rtol=1e-8, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(packed_scores(regions, words, **options), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("coding", CODINGS)
def test_each_side_is_sorted_once(coding: str, gradient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tiles and panels the scores are computed in."""
    sorted_sides = []
    length_order = Packed.length_order

    def count(side: Packed) -> Tensor | None:
        sorted_sides.append(len(side))
        return length_order(side)

    monkeypatch.setattr(Packed, "length_order", count)
    for name in ("TILE_REGIONS", "TILE_WORDS", "SOFT_TILE_WORDS", "SOFT_TILE_SIMILARITIES"):
        monkeypatch.setattr(scoring, name, 6)
    monkeypatch.setattr(hard_assignment, "PANEL_SIMILARITIES", 6)
    images, captions = packed(sequences([3, 1, 4, 2], 0)), packed(sequences([2, 5, 1], 1))
    with torch.set_grad_enabled(gradient):
        packed_scores(images, captions, coding=coding)
    assert sorted_sides == [4, 3]


@pytest.mark.parametrize("coding", CODINGS)
def test_a_gradient_of_zero_is_zero(coding: str) -> None:
    regions, words = packed(sequences([2, 3], 0)), packed(sequences([4, 1], 1))
    packed_scores(regions, words, coding=coding).mul(0).sum().backward()
    assert not regions.rows.grad.any()
    assert not words.rows.grad.any()


def test_winners_are_positions_within_the_image() -> None:
    images, captions = sequences([3, 1, 4], 0), sequences([2, 5], 1)
    best, winner = best_keys(torch.from_numpy(np.concatenate(captions)), packed(images))
    for column, image in enumerate(images):
        similarity = np.concatenate(captions) @ image.T
        np.testing.assert_array_equal(winner[:, column], similarity.argmax(1))
        np.testing.assert_allclose(best[:, column].detach(), similarity.max(1), rtol=1e-12)


@pytest.mark.parametrize(("coding", "precision"), list(itertools.product(CODINGS, ["bf16", "fp16"])))
def test_half_precision_products(coding: str, precision: str) -> None:
    """Scores move by the rounding of the products, 2^-8 or 2^-11; all else, and the gradient, stays float32."""
    images, captions = packed(sequences([9, 4, 20], 4, dim=64)), packed(sequences([5, 3, 8], 5, dim=64))
    sides = [side.with_rows(side.rows.detach().float().requires_grad_()) for side in (images, captions)]
    options: dict[str, Any] = {"coding": coding, "pooling": "mean", "alpha": ALPHA}
    scores = packed_scores(*sides, **options, precision=precision)
    exact = packed_scores(images, captions, **options)
    assert scores.dtype == torch.float32
    bound = 0.02 if precision == "bf16" else 0.003
    assert (scores - exact).abs().max() < bound
    assert (scores != exact.float()).any()
    scores.sum().backward()
    exact.sum().backward()
    for side, precise in zip(sides, (images, captions), strict=True):
        assert side.rows.grad.dtype == torch.float32
        relative = (side.rows.grad - precise.rows.grad).norm() / precise.rows.grad.norm()
        assert relative < 0.4  # where two similarities round to the same number, another key wins


@pytest.mark.parametrize("coding", CODINGS)
def test_inputs_are_not_written_into(coding: str) -> None:
    images, captions = packed(sequences([3, 1], 0)), packed(sequences([2, 2], 1))
    before = images.rows.detach().clone(), captions.rows.detach().clone()
    for pooling in POOLINGS:
        packed_scores(images, captions, coding=coding, pooling=pooling).sum().backward()
    assert torch.equal(images.rows, before[0])
    assert torch.equal(captions.rows, before[1])


def test_negative_similarities_beat_nothing_that_is_not_there() -> None:
    """An image whose regions all point away from a word scores below 0, whatever its neighbours have."""
    word = torch.tensor([[1.0, 0.0]])
    images = pack([-word, torch.cat([-word, torch.tensor([[-0.6, 0.8]]), torch.tensor([[-0.8, 0.6]])])])
    scores = packed_scores(images, pack([word]), pooling="sum")
    torch.testing.assert_close(scores, torch.tensor([[-1.0], [-0.6]]))


def test_a_similarity_of_minus_one_is_a_value_like_any_other() -> None:
    """The published code takes -1 for padding, and so loses regions opposite to every word."""
    word = torch.tensor([[1.0, 0.0]])
    scores = packed_scores(pack([torch.cat([-word, word])]), pack([word]), coding="tha", pooling="mean")
    torch.testing.assert_close(scores, torch.tensor([[0.0]]))


def saved_sizes(images: Packed, captions: Packed, coding: str) -> list[int]:
    """Numbers in each tensor that autograd saves for the backward pass."""
    sizes = []

    def saved(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        packed_scores(images, captions, coding=coding)
    return sizes


@pytest.mark.parametrize("coding", ["vha", "tha"])
def test_hard_assignment_keeps_only_winners(coding: str) -> None:
    """No tensor that autograd saves, for all pairs, grows with regions times words."""
    images, captions = packed(sequences([30] * 8, 0)), packed(sequences([20] * 9, 1))
    sizes = saved_sizes(images, captions, coding)
    values = 8 * 9 * (20 if coding == "vha" else 30)
    assert max(sizes) == max(values, 30 * 8 * 6)


@pytest.mark.parametrize("coding", ["vsa", "t2i", "i2t"])
def test_soft_codings_keep_nothing_but_their_inputs(coding: str) -> None:
    images, captions = packed(sequences([30] * 8, 0)), packed(sequences([20] * 9, 1))
    sizes = saved_sizes(images, captions, coding)
    assert sum(sizes) <= 2 * (30 * 8 + 20 * 9) * 6


@pytest.mark.parametrize(("coding", "norm"), [("t2i", "clipped_l2norm"), ("i2t", "softmax"), ("i2t", "no_norm")])
def test_the_attention_that_is_shown_is_that_of_the_score(coding: str, norm: str) -> None:
    """By hand: the weights of `by_attention`, of words over regions (t2i) or of regions over words (i2t)."""
    image, caption = packed(sequences([4], 0)), packed(sequences([6], 1))
    made = make_coding(coding, ALPHA, norm, LAMBDA_SOFTMAX)
    value, region = made.choices(image.with_rows(image.rows.detach()), caption.with_rows(caption.rows.detach()))
    table = image.rows.detach().numpy() @ caption.rows.detach().numpy().T
    if norm == "clipped_l2norm":
        table = np.where(table > 0, table, 0.1 * table)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
    elif norm == "softmax":
        table = np.exp(table) / np.exp(table).sum(0)
    shares = np.exp(LAMBDA_SOFTMAX * table)
    shares /= shares.sum(0 if coding == "t2i" else 1, keepdims=True)
    np.testing.assert_allclose(value, shares.max(0), rtol=1e-10)
    np.testing.assert_array_equal(region, shares.argmax(0))


def test_the_settings_of_a_model_are_the_functions() -> None:
    images, captions = packed(sequences([3, 1, 4], 0)), packed(sequences([2, 5], 1))
    found = Scorer.from_names("vsa", "softmax", ALPHA, BETA)(images, captions)
    options = {"coding": "vsa", "pooling": "softmax", "alpha": ALPHA, "beta": BETA}
    assert torch.equal(found, packed_scores(images, captions, **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coding": "xyz"}, "coding 'xyz': expected one of vha, tha"),
        ({"pooling": "median"}, "pooling 'median'"),
        ({"precision": "int8"}, "precision 'int8'"),
        ({"similarity_norm": "l3norm"}, "similarity_norm 'l3norm': expected one of clipped_l2norm"),
        ({"region_offsets": torch.tensor([0, 2, 2])}, "region_offsets must rise from 0 to 2, by at least 1"),
        ({"word_offsets": torch.tensor([0, 4])}, "word_offsets must rise from 0 to 3"),
        ({"words": torch.ones(3, 5)}, r"words \(3, 5\) differ in width"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "regions": torch.eye(3)[:2],
        "region_offsets": torch.tensor([0, 2]),
        "words": torch.eye(3),
        "word_offsets": torch.tensor([0, 3]),
    }
    assert math.isfinite(pairwise_scores(**arguments).item())
    with pytest.raises(ValueError, match=message):
        pairwise_scores(**{**arguments, **change})


def test_global_is_the_product_of_two_vectors() -> None:
    images, captions = packed(sequences([1] * 7, 0)), packed(sequences([1] * 5, 1))
    expected = np.array([[sum(a * b for a, b in zip(i, c, strict=True)) for c in captions.rows.detach().numpy()]
                         for i in images.rows.detach().numpy()])  # fmt: skip
    scores = packed_scores(images, captions, coding="global", pooling="mean")
    np.testing.assert_allclose(scores.detach(), expected, rtol=1e-12)
    upstream = torch.from_numpy(np.random.default_rng(2).standard_normal((7, 5)))
    scores.backward(upstream)
    torch.testing.assert_close(images.rows.grad, upstream @ captions.rows.detach())
    torch.testing.assert_close(captions.rows.grad, upstream.T @ images.rows.detach())
    with pytest.raises(ValueError, match="expected one vector per image, found 3 rows"):
        packed_scores(packed(sequences([2, 1], 0)), captions, coding="global")


@pytest.mark.parametrize("gradient", [True, False])
def test_products_in_fp32_are_not_rounded_to_tf32(gradient: bool) -> None:
    found = []

    def pooling(values: Tensor) -> Tensor:
        found.append(torch.backends.cuda.matmul.fp32_precision)
        return values.mean(1)

    images, captions = packed(sequences([3], 0)), packed(sequences([2], 1))
    with torch.set_grad_enabled(gradient):
        Scorer(make_coding("vsa", ALPHA), pooling)(images, captions)
    assert found == ["ieee"]
