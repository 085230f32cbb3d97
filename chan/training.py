"""Training: epochs of augmented pairs, each ended by a validation and a saved state.

What chance decides derives from the seed, the epoch and the caption, so that a run that was stopped and
resumed ends with the same weights as one that was not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from chan import evaluation, runs
from chan.batches import TrainingPairs, epoch_order, training_batches
from chan.config import Config, LossConfig, LossName, TextEncoderName
from chan.losses import contrastive, infonce, negative_pairs
from chan.metrics import Metrics
from chan.model import Chan, build_model
from chan.optimisation import make_optimizer, set_learning_rate
from chan.runs import Progressed
from chan.splits import FeatureSplit, check_dim, open_split
from chan.word_ids import BertReader, CaptionReader, VocabularyReader
from data_tools.console import Progress
from data_tools.errors import InputError
from data_tools.layout import find_vocabulary
from data_tools.vocabulary import Vocabulary

LOG_STEPS = 10  # steps between two lines of training metrics

Criterion = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Trainer:
    """What the steps of a run share."""

    model: Chan
    optimizer: AdamW
    pairs: TrainingPairs
    config: Config
    metrics: Metrics
    device: torch.device


def train(
    folder: Path, config: Config, data: Path, features: Path | None, device: torch.device, resume: bool
) -> Progressed:
    """Train a model in the run folder `folder` and return what it came to.

    Args:
        folder: where the run lies; made unless `resume`.
        config: the configuration; with `resume` that of the folder, but for more epochs perhaps.
        data: the data set's folder, with the splits train and dev.
        features: as for `feature_source`.
        device: where to train.
        resume: continue behind the last finished epoch.

    Raises:
        InputError: the data are wrong or the loss is no longer a number.
        UsageError: the folder holds a run and `resume` is off.
    """
    if not resume:
        runs.refuse_existing(folder)
    training, dev = (open_split(data, name, features) for name in ("train", "dev"))
    if config.model.image.dim is None:
        config.model.image.dim = training.features.dim
    for opened in (training, dev):
        check_dim(opened, config.model.image.dim)

    if resume:
        reader = runs.load_reader(folder, config)
    else:
        reader = make_reader(config, data, [*training.split.captions, *dev.split.captions])
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, config.model.image.dim, reader, pretrained=not resume).to(device)
    optimizer = make_optimizer(model, config.train.lr, config.train.text_lr_factor, config.train.weight_decay)
    progressed = Progressed()
    if resume:
        progressed = runs.load_epoch(folder, model, optimizer)
        runs.keep_config(folder, config)
    else:
        runs.save_state(folder, model, optimizer, progressed)
        runs.start_run(folder, config, reader)
    pairs = TrainingPairs(training, reader, config.data.region_keep, config.data.token_change, config.train.seed)
    with Metrics(folder, progressed.step) as metrics:
        trainer = Trainer(model, optimizer, pairs, config, metrics, device)
        for _ in range(progressed.epoch, config.train.epochs):
            train_epoch(trainer, progressed)
            validate(trainer, dev, reader, progressed)
            runs.save_epoch(folder, model, optimizer, progressed)
    return progressed


def make_reader(config: Config, data: Path, captions: list[str]) -> CaptionReader:
    """BERT's tokenizer, or the vocabulary: the named one, the data set's, or one built from `captions`."""
    if config.model.text.encoder is TextEncoderName.bert:
        return BertReader(config.model.text.bert)
    found = Path(config.data.vocab) if config.data.vocab else find_vocabulary(data)
    return VocabularyReader(Vocabulary.load(found) if found else Vocabulary.build(captions))


def make_criterion(config: LossConfig, epoch: int) -> Criterion:
    """The loss of an epoch, a function of scores (B, B) and negatives (B, B)."""
    if config.name is LossName.infonce:
        return partial(infonce, margin=config.margin, temperature=config.temperature)
    return partial(contrastive, margin=config.margin, hardest=epoch >= config.warmup_epochs)


def train_epoch(trainer: Trainer, progressed: Progressed) -> None:
    """One pass over the training captions; counts the epoch and its steps in `progressed`."""
    settings, epoch = trainer.config.train, progressed.epoch
    torch.manual_seed((settings.seed << 20) + epoch + 1)  # BERT's dropout, the only chance left to torch
    rate = set_learning_rate(trainer.optimizer, settings.lr, settings.lr_decay, settings.lr_decay_epoch, epoch)
    criterion = make_criterion(trainer.config.loss, epoch)
    trainer.model.train()
    batches = training_batches(
        trainer.pairs, epoch, settings.batch_size, trainer.config.data.workers, trainer.device
    )
    steps = len(epoch_order(len(trainer.pairs), settings.batch_size, settings.seed, epoch))
    losses, pairs, start = [], 0, time.monotonic()
    with Progress(f"epoch {epoch + 1}/{settings.epochs}", steps, "steps") as progress:
        for step, batch in enumerate(batches, start=1):
            negatives = negative_pairs(batch.image_of_pair, trainer.config.loss.mask_duplicates)
            loss = criterion(trainer.model(batch.images, batch.captions), negatives)
            trainer.optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(trainer.model.parameters(), settings.clip)
            trainer.optimizer.step()
            losses.append(loss.detach())
            pairs += len(batch.images)
            note = ""
            if len(losses) == LOG_STEPS or step == steps:
                average = torch.stack(losses).mean().item()
                _check_finite(average, progressed.step + step)
                speed = pairs / max(time.monotonic() - start, 1e-9)
                values = {"loss": average, "lr": rate, "pairs_per_s": speed}
                trainer.metrics.write("train", progressed.step + step, epoch, values)
                losses, pairs, start = [], 0, time.monotonic()
                note = f"loss {average:.4g}"
            progress.advance(note=note)
    progressed.epoch += 1
    progressed.step += steps


def validate(trainer: Trainer, dev: FeatureSplit, reader: CaptionReader, progressed: Progressed) -> None:
    """Measure recall on dev after an epoch; keeps the best rsum and its epoch in `progressed`."""
    scores = evaluation.score_split(trainer.model, dev, reader, trainer.device)
    result = evaluation.recall_of(scores, dev)
    epoch = progressed.epoch - 1
    trainer.metrics.write("dev", progressed.step, epoch, evaluation.as_document(result))
    if result.rsum > progressed.best_rsum:
        progressed.best_rsum, progressed.best_epoch = result.rsum, epoch


def _check_finite(loss: float, step: int) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise InputError(f"step {step}: the loss is {loss}; start anew with a lower train.lr")
