"""The training loop: epochs of augmented pairs, each followed by a validation and a saved state.

All random numbers are derived from the seed, the epoch, the step and the caption, so that a run that was
interrupted and resumed ends with the same weights as one that was not.
"""

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from chan.data.batches import TrainingPairs, epoch_order, training_batches
from chan.data.feature_cache import FeatureCache
from chan.data.splits import FeatureSplit, check_features
from chan.evaluation import evaluate as evaluation
from chan.training import checkpoints
from chan.training.checkpoints import TrainProgress, TrainState
from chan.training.distributed import Ranks
from chan.training.log import TrainingLog
from chan.training.optimizer import set_learning_rate
from chan.training.schedule import Schedule
from chan.training.step import TrainingStep
from data_tools.console import Progress
from data_tools.errors import InputError
from data_tools.weights.states import check_finite

LOG_STEPS = 10  # steps between two lines of training metrics
SAVE_SECONDS = 600.0  # between two saved states within an epoch, which are saved with a line of metrics


@dataclass(frozen=True)
class Trainer:
    """What the epochs of a run share.

    Attributes:
        folder: the run folder.
        step: the training step, which holds the model.
        schedule: how long to train, and with which loss and learning rate.
        pairs: the training pairs.
        cache: of their features; None reads them from their file.
        workers: processes that read and augment; 0 does it in this process.
        dev: the split for validation.
        log: of the metrics; None in all processes but rank 0.
    """

    folder: Path
    step: TrainingStep
    schedule: Schedule
    pairs: TrainingPairs
    cache: FeatureCache | None
    workers: int
    dev: FeatureSplit
    log: TrainingLog | None

    @property
    def ranks(self) -> Ranks:
        """This process among those that train together."""
        return self.step.ranks

    @property
    def state(self) -> TrainState:
        """The objects that a saved state holds."""
        return TrainState(self.step.model, self.step.optimizer, self.step.scaler)


def run_epochs(trainer: Trainer, progress: TrainProgress) -> TrainProgress:
    """Train until the schedule ends; rank 0 validates and saves after every epoch.

    Raises:
        InputError: the loss is no longer a finite number.
    """
    while not trainer.schedule.is_over(progress.epoch, progress.best_epoch):
        train_epoch(trainer, progress)
        if trainer.ranks.is_main:
            validate(trainer, progress)
            checkpoints.save_epoch(trainer.folder, trainer.state, progress)
        progress = trainer.ranks.broadcast(progress)
    return progress


def train_epoch(trainer: Trainer, progress: TrainProgress) -> None:
    """Take the remaining steps of an epoch; counts them, and then the epoch, in `progress`."""
    schedule, ranks, epoch = trainer.schedule, trainer.ranks, progress.epoch
    order = epoch_order(len(trainer.pairs), schedule.batch_size, schedule.seed, epoch)
    criterion, training_step = schedule.criterion(epoch), trainer.step
    training_step.model.train()
    shards = [ranks.shard(captions) for captions in order[progress.epoch_step :]]
    device = training_step.device
    batches = training_batches(trainer.pairs, epoch, shards, trainer.workers, device, trainer.cache)
    interval, saved, note = _Interval(), time.monotonic(), ""
    title = f"epoch {epoch + 1}/{schedule.epochs}"
    later = (schedule.epochs - epoch - 1) * len(order)
    with _progress_bar(title, (len(order), progress.epoch_step, later), ranks) as bar:
        for batch in batches:
            rate = schedule.learning_rate(epoch, progress.epoch_step, len(order))
            set_learning_rate(training_step.optimizer, rate)
            interval.losses.append(training_step(batch, criterion, _step_seed(trainer, progress.step)))
            interval.pairs += len(order[progress.epoch_step])
            progress.step += 1
            progress.epoch_step += 1
            complete = progress.epoch_step == len(order)
            if complete or len(interval.losses) == LOG_STEPS:
                note = _log_interval(trainer, progress, interval, rate)
                if ranks.is_main and not complete and time.monotonic() - saved >= SAVE_SECONDS:
                    checkpoints.save_state(trainer.folder, trainer.state, progress)
                    saved = time.monotonic()
                interval = _Interval()
            bar.advance(note=note)
    progress.epoch += 1
    progress.epoch_step = 0


def validate(trainer: Trainer, progress: TrainProgress) -> None:
    """Measure recall on dev after an epoch; records the best rsum and its epoch in `progress`.

    Raises:
        InputError: the weights, or the features of dev, are no finite numbers.
    """
    step, epoch = trainer.step, progress.epoch - 1
    try:
        check_finite(step.model.state_dict())  # the loss of the last step was that of the weights before it
    except ValueError as error:
        raise InputError(f"epoch {epoch + 1}: {error}; start a new run with a lower train.lr") from None
    result = evaluation.measure(step.model, trainer.dev, trainer.pairs.tokenizer, step.device)
    assert trainer.log is not None
    by_chance = evaluation.split_chance(trainer.dev.split)
    document = {**evaluation.as_document(result), "chance": {"rsum": by_chance.rsum}}
    trainer.log.write("dev", progress.step, epoch, document)
    if result.rsum > progress.best_rsum:
        progress.best_rsum, progress.best_epoch = result.rsum, epoch
        comparison = "the best so far"
    else:
        comparison = f"best {progress.best_rsum:.1f} after epoch {progress.best_epoch + 1}"
    table = evaluation.as_table(result, by_chance)
    print(f"dev after epoch {epoch + 1}\n{table}  {comparison}", file=sys.stderr, flush=True)


@dataclass
class _Interval:
    """The steps since the last line of metrics; losses stay on the device until the line is written."""

    losses: list[Tensor] = field(default_factory=list)
    pairs: int = 0
    start: float = field(default_factory=time.monotonic)


def _log_interval(trainer: Trainer, progress: TrainProgress, interval: _Interval, rate: float) -> str:
    """Write the metrics of an interval; returns them for the progress bar."""
    loss = torch.stack(interval.losses).mean().item()
    if not math.isfinite(loss):
        check_features(trainer.pairs.feature_split)
        raise InputError(f"step {progress.step}: the loss is {loss}; start a new run with a lower train.lr")
    speed = interval.pairs / max(time.monotonic() - interval.start, 1e-9)
    if trainer.log is not None:
        values = {"loss": loss, "lr": rate, "pairs_per_s": speed}
        trainer.log.write("train", progress.step, progress.epoch, values)
    return f"loss {loss:.4g}  lr {rate:.3g}  {speed:.0f} pairs/s"


def _step_seed(trainer: Trainer, step: int) -> int:
    """The seed of a step, counted from 0 over all epochs; its chunks take the seeds up to the next step's."""
    return ((trainer.schedule.seed << 40) + step * trainer.step.grad_cache_chunks) % (1 << 52)


def _progress_bar(title: str, steps: tuple[int, int, int], ranks: Ranks) -> Progress:
    """The progress of an epoch, which only rank 0 shows; `steps`: of the epoch, done of them, of later epochs."""
    total, done, later = steps
    return (Progress if ranks.is_main else _HiddenProgress)(title, total, "steps", done, later)


class _HiddenProgress(Progress):
    """The progress of the other ranks, which show none."""

    def __enter__(self) -> "Progress":
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Do nothing."""

    def _line(self, note: str) -> None:
        pass
