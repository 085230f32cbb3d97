from pathlib import Path

import numpy as np
import pytest
import torch

from chan.data.splits import open_split
from chan.evaluation.comparison import as_table, difference, most_different
from chan.evaluation.evaluate import Evaluation, evaluate
from chan.evaluation.intervals import RESAMPLES, draw_images, paired_bootstrap
from chan.evaluation.recall import CUTOFFS, Ranking, matrix_blocks


def ranking(i2t: list[int], t2i: list[int], owners: list[int]) -> Ranking:
    return Ranking(torch.tensor(i2t), torch.arange(len(i2t)), torch.tensor(t2i), torch.tensor(owners))


def test_a_draw_of_images_is_used_for_both_models() -> None:
    owners = [0, 0, 1, 2, 2, 2]
    first = ranking([0, 4, 20], [0, 1, 9, 10, 3, 0], owners)
    second = ranking([3, 0, 6], [5, 0, 0, 2, 30, 8], owners)
    draws = draw_images(3, seed=7)
    assert draws.shape == (RESAMPLES, 3)
    assert (draws.sum(1) == 3).all()

    def rsum(found: Ranking, counts: np.ndarray) -> float:
        """By copying the queries of each image as often as it was drawn."""
        images = [rank for rank, n in zip(found.i2t.tolist(), counts, strict=True) for _ in range(n)]
        captions = [r for r, own in zip(found.t2i.tolist(), owners, strict=True) for _ in range(counts[own])]
        return sum(100 * np.mean([rank < k for rank in side]) for side in (images, captions) for k in CUTOFFS)

    expected = [rsum(second, counts) - rsum(first, counts) for counts in draws]
    np.testing.assert_allclose(paired_bootstrap(first, second, seed=7), expected, atol=1e-9)
    with pytest.raises(ValueError, match="not of the same queries"):
        paired_bootstrap(first, ranking([0, 0], [0, 0], [0, 1]), seed=7)


def evaluated(opened_from: Path, scores: torch.Tensor) -> Evaluation:
    return evaluate(open_split(opened_from, "test", None).split, 1, matrix_blocks(scores), seed=0)


def test_a_model_does_not_differ_from_itself_and_does_from_a_bad_one(dataset: Path) -> None:
    owners = open_split(dataset, "test", None).split.caption_images
    right = torch.from_numpy((owners == np.arange(6)[:, None]).astype(np.float32))
    good, bad = evaluated(dataset, right), evaluated(dataset, -right)
    same = difference(good, good, seed=0)
    assert (same.rsum, same.interval, same.p) == (0, (0, 0), 1)
    worse = difference(good, bad, seed=0)
    assert worse.rsum == bad.recall.rsum - good.recall.rsum
    assert worse.interval[0] <= worse.rsum <= worse.interval[1] < 0
    assert worse.p == 0
    table = as_table(["good", "bad"], [good, bad]).splitlines()
    assert table[2].split()[:2] == ["good", "100.0"]
    assert f"{good.chance.rsum:.1f}" == table[-1].split()[-1]


def test_the_most_different_captions_by_the_ratio_of_their_ranks() -> None:
    owners = [0, 0, 1, 1, 2]
    first = ranking([0, 0, 0], [0, 100, 7, 3, 50], owners)
    second = ranking([0, 0, 0], [9, 110, 7, 0, 1], owners)
    # ratios of ranks from 1: 10, 1.1, 1, 4, 25.5
    assert most_different(first, second, 10) == [4, 0, 3, 1]
    assert most_different(first, second, 2) == [4, 0]
