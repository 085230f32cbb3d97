import numpy as np
import pytest
import torch

from chan.evaluation.intervals import bootstrap
from chan.evaluation.recall import Ranking


def ranking(images: int, share: float) -> Ranking:
    """Queries of which `share` are answered at once and the others never."""
    random = np.random.default_rng(0)
    i2t = torch.from_numpy(np.where(random.random(images) < share, 0, 99))
    t2i = torch.from_numpy(np.where(random.random(5 * images) < share, 0, 99))
    return Ranking(i2t, torch.arange(images), t2i, torch.arange(images).repeat_interleave(5))


def test_an_interval_is_that_of_the_binomial_distribution() -> None:
    found, given = bootstrap(ranking(2000, 0.3), seed=0), ranking(2000, 0.3)
    for side, ranks in ((found.i2t, given.i2t), (found.t2i, given.t2i)):
        mean = 100 * (ranks < 1).double().mean().item()
        half = 1.96 * np.sqrt(mean * (100 - mean) / len(ranks))
        assert side.r1 == pytest.approx((mean - half, mean + half), abs=0.3)
        assert side.r1 == side.r5 == side.r10


def test_captions_go_with_their_image() -> None:
    """Five equal answers an image are one answer's worth of certainty."""
    images = ranking(2000, 0.3)
    five = Ranking(images.i2t, images.images, images.i2t.repeat_interleave(5), images.caption_images)
    found = bootstrap(five, seed=0)
    assert found.t2i.r1 == pytest.approx(found.i2t.r1)


def test_a_seed_decides() -> None:
    assert bootstrap(ranking(50, 0.5), 1) == bootstrap(ranking(50, 0.5), 1)
    assert bootstrap(ranking(50, 0.5), 1) != bootstrap(ranking(50, 0.5), 2)


def test_perfect_answers_are_certain() -> None:
    assert bootstrap(ranking(20, 1.1), 0).rsum == (600.0, 600.0)
