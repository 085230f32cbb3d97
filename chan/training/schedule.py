"""How long a run trains, and what changes with its epochs and steps: the learning rate and the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from chan.training.losses import Criterion

LearningRate = Callable[[int, int, int], float]
"""From an epoch, a step in it (both counted from 0) and the number of steps per epoch to the learning rate."""


@dataclass(frozen=True)
class Schedule:
    """The course of a run.

    Attributes:
        epochs: passes over the training pairs.
        batch_size: pairs per step, of all processes together.
        seed: the order of the pairs and the dropout depend on it.
        criterion: the loss of an epoch, counted from 0.
        learning_rate: the learning rate of a step.
        patience: epochs without a better dev rsum after which training stops; None: never.
    """

    epochs: int
    batch_size: int
    seed: int
    criterion: Callable[[int], Criterion]
    learning_rate: LearningRate
    patience: int | None = None

    def is_over(self, epoch: int, best_epoch: int) -> bool:
        """Whether training ends after `epoch` finished epochs, if the best, counted from 0, was `best_epoch`."""
        impatient = self.patience is not None and epoch > 0 and epoch - 1 - best_epoch >= self.patience
        return impatient or epoch >= self.epochs


def step_down(lr: float, decay: float, decay_epoch: int, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: `lr`, and from `decay_epoch` on `decay` times that.

    >>> [step_down(1.0, 0.5, 2, epoch) for epoch in range(4)]
    [1.0, 1.0, 0.5, 0.5]
    """
    return lr * decay if epoch >= decay_epoch else lr


def half_cosine(lr: float, done: float) -> float:
    """The learning rate after the share `done`, 0 to 1, of all steps: from `lr` to 0 (Loshchilov and Hutter 2017).

    >>> [half_cosine(1.0, done) for done in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return lr * 0.5 * (1 + math.cos(math.pi * done))
