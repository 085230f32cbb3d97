"""Learning rates, losses and the end of training, epoch by epoch."""

import math

import pytest
import torch

from chan.build import build_schedule
from chan.config import Config, override
from chan.training.losses import contrastive, infonce, negative_pairs
from chan.training.schedule import Schedule, half_cosine, step_down

SCORES = torch.tensor([[0.5, 0.45, 0.2], [0.1, 0.3, 0.4], [0.25, 0.6, 0.35]])
NEGATIVES = negative_pairs(torch.arange(3), True)


def schedule(*changes: str) -> Schedule:
    return build_schedule(override(Config(), changes))


def test_the_rate_steps_down_at_its_epoch() -> None:
    assert [step_down(0.2, 0.1, 2, epoch) for epoch in range(4)] == pytest.approx([0.2, 0.2, 0.02, 0.02])
    rate = schedule("train.lr=0.2", "train.lr_decay=0.5", "train.lr_decay_epoch=1").learning_rate
    assert [rate(epoch, step, 7) for epoch, step in ((0, 0), (0, 6), (1, 0), (2, 3))] == [0.2, 0.2, 0.1, 0.1]


def test_the_rate_falls_along_a_cosine() -> None:
    assert [half_cosine(0.4, done) for done in (0, 1 / 3, 0.5, 1)] == pytest.approx([0.4, 0.3, 0.2, 0.0])
    rate = schedule("train.lr=0.4", "train.schedule=cosine", "train.epochs=3").learning_rate
    found = [rate(epoch, step, 4) for epoch in range(3) for step in range(4)]
    assert found == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])


def test_the_hardest_negatives_count_after_the_warm_up() -> None:
    criterion = schedule("loss.warmup_epochs=2", "loss.margin=0.3").criterion
    for epoch, hardest in ((0, False), (1, False), (2, True), (9, True)):
        expected = contrastive(SCORES, NEGATIVES, margin=0.3, hardest=hardest)
        assert criterion(epoch)(SCORES, NEGATIVES) == expected
    assert criterion(0)(SCORES, NEGATIVES) != criterion(2)(SCORES, NEGATIVES)


def test_infonce_is_the_same_in_every_epoch() -> None:
    criterion = schedule("loss.name=infonce", "loss.temperature=0.2", "loss.margin=0.1").criterion
    for epoch in (0, 5):
        assert criterion(epoch)(SCORES, NEGATIVES) == infonce(SCORES, NEGATIVES, margin=0.1, temperature=0.2)


@pytest.mark.parametrize(
    ("epoch", "best_epoch", "over"),
    [(0, -1, False), (1, 0, False), (2, 0, False), (3, 0, True), (3, 1, False), (9, 8, True)],
)
def test_training_ends_with_its_epochs_or_its_patience(epoch: int, best_epoch: int, over: bool) -> None:
    assert schedule("train.epochs=9", "train.patience=2").is_over(epoch, best_epoch) is over


def test_without_patience_only_the_epochs_end_it() -> None:
    assert [schedule("train.epochs=9").is_over(epoch, 0) for epoch in (8, 9)] == [False, True]
