from itertools import permutations

import numpy as np
import pytest
import torch

from chan.evaluation.chance import chance
from chan.evaluation.recall import measure


@pytest.mark.parametrize("owners", [[0, 0, 1], [0, 1, 2, 2], [0, 0, 0, 2]])
def test_chance_is_the_mean_over_all_orders_of_the_scores(owners, monkeypatch):
    monkeypatch.setattr("chan.evaluation.recall.CUTOFFS", (1, 2, 3))
    monkeypatch.setattr("chan.evaluation.chance.CUTOFFS", (1, 2, 3))
    images, captions = 3, torch.tensor(owners)
    # The columns of a direction are ranked alone: all orders of one row (captions) and of one column (images).
    by_image = [
        measure(torch.tensor(order).float().expand(images, -1), captions).i2t
        for order in permutations(range(len(owners)))
    ]
    by_caption = [
        measure(torch.tensor(order).float()[:, None].expand(-1, len(owners)), captions).t2i
        for order in permutations(range(images))
    ]
    expected = sum(np.mean([getattr(side, name) for side in by_image]) for name in ("r1", "r5", "r10"))
    expected += sum(np.mean([getattr(side, name) for side in by_caption]) for name in ("r1", "r5", "r10"))
    assert chance(images, np.array(owners)).rsum == pytest.approx(expected, rel=1e-12)


def test_fewer_candidates_than_places_are_all_found():
    assert chance(4, np.array([0, 1, 2, 3])).rsum == pytest.approx(100 * (1 / 4 + 1 + 1) * 2)


def test_a_random_matrix_comes_to_it():
    owners = np.repeat(np.arange(40), 5)
    random = torch.Generator().manual_seed(0)
    found = [measure(torch.rand(40, 200, generator=random), torch.from_numpy(owners)).rsum for _ in range(60)]
    error = np.std(found) / np.sqrt(len(found))
    assert chance(40, owners).rsum == pytest.approx(np.mean(found), abs=4 * error)
