"""Training: epochs of augmented pairs, each ended by a validation and a saved state.

What chance decides derives from the seed, the epoch, the step and the caption, so that a run that was stopped
and resumed ends with the same weights as one that was not.
"""

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from chan.config import Config, LossConfig, LossName, ScheduleName, TextEncoderName, TrainConfig
from chan.data.batches import TrainingPairs, epoch_order, training_batches
from chan.data.feature_cache import FeatureCache, make_cache
from chan.data.splits import FeatureSplit, check_dim, open_split
from chan.evaluation import evaluate as evaluation
from chan.model.chan import build_model
from chan.runs import folder as runs
from chan.runs.folder import TrainProgress, TrainState
from chan.text.tokenizers import BertTokenizer, CaptionTokenizer, VocabularyTokenizer
from chan.training import distributed
from chan.training.distributed import Ranks
from chan.training.log import Metrics
from chan.training.losses import contrastive, infonce
from chan.training.optimizer import half_cosine, make_optimizer, set_learning_rate, step_down
from chan.training.step import Criterion, TrainingStep, make_scaler
from data_tools.captions.vocabulary import Vocabulary
from data_tools.console import Progress
from data_tools.errors import InputError, UsageError
from data_tools.layout import find_vocabulary

LOG_STEPS = 10  # steps between two lines of training metrics
SAVE_SECONDS = 600.0  # after which a state is saved within an epoch, at the next line of metrics


@dataclass(frozen=True)
class Trainer:
    """What the epochs of a run share."""

    folder: Path
    config: Config
    stepper: TrainingStep
    pairs: TrainingPairs
    cache: FeatureCache | None
    dev: FeatureSplit
    metrics: Metrics | None  # None in all processes but the first

    @property
    def ranks(self) -> Ranks:
        """This process among those that train together."""
        return self.stepper.ranks

    @property
    def learning(self) -> TrainState:
        """What a saved state holds."""
        return TrainState(self.stepper.model, self.stepper.optimizer, self.stepper.scaler)


def train(
    folder: Path, config: Config, data: Path, features: Path | None, device: torch.device, resume: bool
) -> TrainProgress:
    """Train a model in the run folder `folder` and return what it came to.

    Started by torchrun, the processes train one model together, of which the first writes the folder.

    Args:
        folder: where the run lies; made unless `resume`.
        config: the configuration; with `resume` that of the folder, but for more epochs perhaps.
        data: the data set's folder, with the splits train and dev.
        features: as for `feature_source`.
        device: where to train.
        resume: continue behind the last saved state.

    Raises:
        InputError: the data are wrong, other features than before, or the loss is no longer a number.
        UsageError: the folder holds a run and `resume` is off, or there are fewer pairs than processes.
    """
    with distributed.joined(device) as (ranks, own_device):
        if not resume:
            runs.check_new_run(folder)
        if config.train.batch_size < ranks.count:
            raise UsageError(f"train.batch_size: {config.train.batch_size} pairs for {ranks.count} processes")
        training, dev = (open_split(data, name, features) for name in ("train", "dev"))
        if config.model.image.dim is None:
            config.model.image.dim = training.features.dim
        for opened in (training, dev):
            check_dim(opened, config.model.image.dim)
            if resume:
                runs.check_provenance(folder, opened)
        runs.check_same_features(training.features.provenance, str(training.source), dev)
        if resume:
            reader = runs.load_reader(folder, config)
        else:
            reader = make_reader(config, data, [*training.split.captions, *dev.split.captions])
        return _run_epochs(folder, config, reader, training, dev, own_device, ranks, resume)


def _run_epochs(
    folder: Path,
    config: Config,
    reader: CaptionTokenizer,
    training: FeatureSplit,
    dev: FeatureSplit,
    device: torch.device,
    ranks: Ranks,
    resume: bool,
) -> TrainProgress:
    settings = config.train
    stepper = build_step(config, reader, device, ranks, pretrained=not resume)
    learning = TrainState(stepper.model, stepper.optimizer, stepper.scaler)
    progressed = runs.load_state(folder, learning) if resume else TrainProgress()
    progressed = ranks.broadcast(progressed)  # also: nobody goes on before everybody has read the folder
    if ranks.first and resume:
        runs.keep_config(folder, config)
    elif ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        runs.save_state(folder, learning, progressed)
        runs.start_run(folder, config, reader, training.features.provenance)
    cache = make_cache(training, config.data.cache.value, device)
    pairs = TrainingPairs(
        training,
        reader,
        config.data.region_keep_prob,
        config.data.token_change_prob,
        settings.seed,
        None if cache is None else cache.starts,
    )
    metrics = Metrics(folder, progressed.step) if ranks.first else None
    trainer = Trainer(folder, config, stepper, pairs, cache, dev, metrics)
    try:
        while progressed.epoch < settings.epochs and not _out_of_patience(settings, progressed):
            train_epoch(trainer, progressed)
            if ranks.first:
                validate(trainer, progressed)
                runs.save_epoch(folder, trainer.learning, progressed)
            progressed = ranks.broadcast(progressed)
    finally:
        if metrics is not None:
            metrics.close()
    return progressed


def _out_of_patience(settings: TrainConfig, progressed: TrainProgress) -> bool:
    waited = progressed.epoch - 1 - progressed.best_epoch
    return settings.patience is not None and progressed.epoch > 0 and waited >= settings.patience


def build_step(
    config: Config, reader: CaptionTokenizer, device: torch.device, ranks: Ranks, pretrained: bool
) -> TrainingStep:
    """The model of a configuration with what trains it, on `device`."""
    settings = config.train
    assert config.model.image.dim is not None
    torch.manual_seed(settings.seed)
    model = build_model(config.model, config.model.image.dim, reader, pretrained, say=ranks.first).to(device)
    return TrainingStep(
        model=model,
        optimizer=make_optimizer(model, settings.lr, settings.text_lr_factor, settings.weight_decay),
        scaler=make_scaler(settings.precision.value, device),
        device=device,
        precision=settings.precision.value,
        parts=settings.grad_cache_chunks,
        clip=settings.clip,
        mask_duplicates=config.loss.mask_duplicates,
        ranks=ranks,
    )


def make_reader(config: Config, data: Path, captions: list[str]) -> CaptionTokenizer:
    """BERT's tokenizer, or the vocabulary: the named one, the data set's, or one built from `captions`."""
    if config.model.text.encoder is TextEncoderName.bert:
        return BertTokenizer(config.model.text.bert)
    found = Path(config.data.vocab) if config.data.vocab else find_vocabulary(data)
    return VocabularyTokenizer(Vocabulary.load(found) if found else Vocabulary.build(captions))


def make_criterion(config: LossConfig, epoch: int) -> Criterion:
    """The loss of an epoch, a function of scores (B, B) and negatives (B, B)."""
    if config.name is LossName.infonce:
        return partial(infonce, margin=config.margin, temperature=config.temperature)
    return partial(contrastive, margin=config.margin, hardest=epoch >= config.warmup_epochs)


def learning_rate(settings: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """The rate of a step, counted from 0, of an epoch of `steps`."""
    if settings.schedule is ScheduleName.cosine:
        return half_cosine(settings.lr, (epoch * steps + step) / (settings.epochs * steps))
    return step_down(settings.lr, settings.lr_decay, settings.lr_decay_epoch, epoch)


def train_epoch(trainer: Trainer, progressed: TrainProgress) -> None:
    """What is left of an epoch's steps; counts them, and the epoch, in `progressed`."""
    settings, ranks, epoch = trainer.config.train, trainer.ranks, progressed.epoch
    order = epoch_order(len(trainer.pairs), settings.batch_size, settings.seed, epoch)
    criterion = make_criterion(trainer.config.loss, epoch)
    trainer.stepper.model.train()
    batches = training_batches(
        trainer.pairs,
        epoch,
        [ranks.share(step) for step in order[progressed.epoch_step :]],
        trainer.config.data.workers,
        trainer.stepper.device,
        trainer.cache,
    )
    losses: list[Tensor] = []
    note, pairs, start, saved = "", 0, time.monotonic(), time.monotonic()
    what = f"epoch {epoch + 1}/{settings.epochs}"
    with _progress(what, len(order), progressed.epoch_step, ranks) as progress:
        for batch in batches:
            rate = learning_rate(settings, epoch, progressed.epoch_step, len(order))
            set_learning_rate(trainer.stepper.optimizer, rate)
            # Parts and processes take consecutive seeds from here.
            seed = (settings.seed << 40) + progressed.step * settings.grad_cache_chunks
            losses.append(trainer.stepper.take(batch, criterion, seed % (1 << 52)))
            pairs += len(order[progressed.epoch_step])
            progressed.step += 1
            progressed.epoch_step += 1
            if len(losses) == LOG_STEPS or progressed.epoch_step == len(order):
                loss = torch.stack(losses).mean().item()
                _check_finite(loss, progressed.step)
                speed = pairs / max(time.monotonic() - start, 1e-9)
                if trainer.metrics is not None:
                    values = {"loss": loss, "lr": rate, "pairs_per_s": speed}
                    trainer.metrics.write("train", progressed.step, epoch, values)
                    if progressed.epoch_step < len(order) and time.monotonic() - saved >= SAVE_SECONDS:
                        runs.save_state(trainer.folder, trainer.learning, progressed)
                        saved = time.monotonic()
                losses, pairs, start = [], 0, time.monotonic()
                note = f"loss {loss:.4g}  lr {rate:.3g}  {speed:.0f} pairs/s"
            progress.advance(note=note)
    progressed.epoch += 1
    progressed.epoch_step = 0


def validate(trainer: Trainer, progressed: TrainProgress) -> None:
    """Measure recall on dev after an epoch; keeps the best rsum and its epoch in `progressed`."""
    stepper = trainer.stepper
    result = evaluation.measure(stepper.model, trainer.dev, trainer.pairs.reader, stepper.device)
    epoch = progressed.epoch - 1
    assert trainer.metrics is not None
    trainer.metrics.write("dev", progressed.step, epoch, evaluation.as_document(result))
    better = result.rsum > progressed.best_rsum
    if better:
        progressed.best_rsum, progressed.best_epoch = result.rsum, epoch
    mark = (
        "  the best so far"
        if better
        else f"  best {progressed.best_rsum:.1f} after epoch {progressed.best_epoch + 1}"
    )
    print(f"dev after epoch {epoch + 1}\n{evaluation.as_table(result)}{mark}", file=sys.stderr, flush=True)


def _check_finite(loss: float, step: int) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise InputError(f"step {step}: the loss is {loss}; start anew with a lower train.lr")


def _progress(what: str, steps: int, done: int, ranks: Ranks) -> Progress:
    """Progress that only the first process shows."""
    return Progress(what, steps, "steps", done=done) if ranks.first else _Unseen(what, steps, "steps")


class _Unseen(Progress):
    """Progress of the processes that do not talk."""

    def __enter__(self) -> "Progress":
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Say nothing."""

    def _line(self, note: str) -> None:
        pass
