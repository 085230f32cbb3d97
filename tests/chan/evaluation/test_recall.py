"""Ranks against a sort whose ties and NaN are broken against the model."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chan.evaluation.recall import Recall, matrix_blocks, measure, rank


def sorted_rank(scores: list[float], right: set[int]) -> int:
    """Place of the first right candidate in a list sorted from high to low, the worst place of equals.

    NaN stands first if it is a wrong candidate's and last if a right one's.
    """

    def compare(a: int, b: int) -> int:
        for one, other, sign in ((a, b, 1), (b, a, -1)):
            if math.isnan(scores[one]) and not (math.isnan(scores[other]) and (one in right) == (other in right)):
                return sign if one in right else -sign
        if scores[a] != scores[b] and not math.isnan(scores[a]):
            return -1 if scores[a] > scores[b] else 1
        return (a in right) - (b in right)

    order = sorted(range(len(scores)), key=functools.cmp_to_key(compare))
    return next(place for place, candidate in enumerate(order) if candidate in right)


def naive(scores: np.ndarray, caption_images: list[int]) -> tuple[list[int], list[int]]:
    i2t = [
        sorted_rank(scores[i].tolist(), own)
        for i in range(len(scores))
        if (own := {c for c, image in enumerate(caption_images) if image == i})
    ]
    t2i = [sorted_rank(scores[:, c].tolist(), {image}) for c, image in enumerate(caption_images)]
    return i2t, t2i


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    images = draw(st.integers(1, 6))
    captions = draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=14))
    value = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, math.nan, math.inf, -math.inf])
    cells = draw(st.lists(value, min_size=images * len(captions), max_size=images * len(captions)))
    return np.array(cells).reshape(images, len(captions)), captions


@pytest.mark.parametrize("block", [1, 2, 512])
@given(problem=problems())
def test_counted_ranks_are_sorted_ranks(block: int, problem: tuple[np.ndarray, list[int]]) -> None:
    scores, captions = problem
    i2t, t2i = naive(scores, captions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chan.evaluation.recall.BLOCK_IMAGES", block)
        found = rank(matrix_blocks(torch.from_numpy(scores)), len(scores), torch.tensor(captions))
    assert found.i2t.tolist() == i2t
    assert found.t2i.tolist() == t2i
    assert found.images.tolist() == sorted(set(captions))
    assert found.caption_images.tolist() == captions


def test_every_score_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chan.evaluation.recall.BLOCK_IMAGES", 3)
    asked = torch.zeros(7, 21, dtype=torch.int64)

    def scorer(images: range, captions: torch.Tensor) -> torch.Tensor:
        asked[images.start : images.stop, captions] += 1
        return torch.zeros(len(images), len(captions))

    rank(scorer, 7, torch.arange(21) % 7)
    assert (asked == 1).all()


def test_a_constant_score_never_looks_good() -> None:
    result = measure(torch.zeros(20, 100), torch.arange(20).repeat_interleave(5))
    assert result.rsum == 0
    assert result.i2t.medr == 96  # behind all 95 captions of other images
    assert result.t2i.medr == 20


def test_a_perfect_score() -> None:
    images = torch.arange(3).repeat_interleave(2)
    result = measure((images == torch.arange(3)[:, None]).float(), images)
    assert result.rsum == 600
    assert (result.i2t.medr, result.i2t.meanr) == (1, 1)


def test_recall_of_ranks_by_hand() -> None:
    found = Recall.from_ranks(torch.tensor([0, 3, 4, 9, 10, 20]))
    assert (found.r1, found.r5, found.r10) == pytest.approx((100 / 6, 300 / 6, 400 / 6))
    assert found.medr == 7  # the median of the 0-based ranks is 6.5
    assert found.meanr == pytest.approx(46 / 6 + 1)
