"""Trains a model in a new run folder, or resumes a run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from chan.build import build_schedule, build_step, build_tokenizer, build_training_pairs
from chan.config import Config, ScheduleName, differing_keys, load_config, override
from chan.data.splits import FeatureSplit, check_dim, open_split
from chan.evaluation.evaluate import split_chance
from chan.keys import keys_of, with_value
from chan.runs import folder as runs
from chan.runs.card import write_card
from chan.runs.hub import fetched_features, fetched_run
from chan.runs.provenance import check_provenance, check_same_features
from chan.runs.record import TrainingClock
from chan.runs.sizing import SIZED_KEYS, fill_sizes, steps_per_epoch
from chan.text.tokenizers import CaptionTokenizer
from chan.training import checkpoints
from chan.training.checkpoints import TrainProgress, TrainState
from chan.training.curves import draw_curves
from chan.training.distributed import Ranks, process_group
from chan.training.log import TrainingLog
from chan.training.loop import Trainer, run_epochs
from data_tools.errors import InputError, UsageError
from data_tools.files import claimed
from data_tools.weights.hub import pinned

FEW_STEPS = 100  # of a whole training
FEW_IMAGES = 100  # of dev
RESUMABLE = {"data.cache", "data.workers", "train.patience", "train.epochs"}
"""The keys that a resumed run may change: the finished epochs do not depend on them."""


def train(
    folder: Path,
    config: Config,
    data: Path,
    features: Path | None,
    device: torch.device,
    resume: bool,
    weights: Path | None = None,
) -> TrainProgress:
    """Train a model in the run folder `folder` and return how far it came.

    If torchrun started several processes, they train one model together, and rank 0 writes the folder.

    Args:
        folder: the run folder; made unless `resume`.
        config: the configuration; with `resume` that of `resumed_config`.
        data: the data set's folder, with the splits train and dev.
        features: as for `open_split`.
        device: where to train.
        resume: continue from the last saved state.
        weights: a run whose best weights and tokenizer a new run starts from; None starts from the beginning.

    Raises:
        InputError: the data are wrong, the weights do not fit the configuration, the features are others than
            before, or the loss is no longer a number.
        UsageError: the folder holds a run and `resume` is off, or there are fewer pairs than processes.
    """
    features, weights = fetched_features(features), None if weights is None else fetched_run(weights)
    with process_group(device) as (ranks, own_device), _claimed(folder, ranks, resume):
        training, dev = (open_split(data, name, features) for name in ("train", "dev"))
        if config.data.dev_images is not None:
            dev = dev.first(config.data.dev_images)
        config = fill_sizes(config, len(training.split.captions))
        if ranks.is_main:
            _warn_of_small_data(config, training, dev)
        assert config.train.batch_size is not None
        if config.train.batch_size < ranks.count:
            raise UsageError(f"train.batch_size: {config.train.batch_size} pairs for {ranks.count} processes")
        if len(training.split.image_ids) < 2:
            raise InputError(f"{data}: the split train has one image; negatives come from at least one other")
        dim = config.model.image.dim or training.features.dim
        config = with_value(config, "model.image.dim", dim)
        for feature_split in (training, dev):
            check_dim(feature_split, dim)
            if resume:
                check_provenance(folder, feature_split)
        check_same_features(
            training.features.provenance, str(training.source), dev.features.provenance, dev.source
        )
        if resume:
            tokenizer = runs.load_tokenizer(folder, config)
        elif weights is not None:
            tokenizer = runs.load_tokenizer(weights, runs.load_run_config(weights))
        else:
            tokenizer = build_tokenizer(config, data, [*training.split.captions, *dev.split.captions])
        return _train(folder, config, tokenizer, data, (training, dev), own_device, ranks, resume, weights)


@contextmanager
def _claimed(folder: Path, ranks: Ranks, resume: bool) -> Iterator[None]:
    """Rank 0 keeps other commands from the folder while it is trained in; a new run needs a folder without one."""
    if not ranks.is_main:
        yield
        return
    if not resume:
        runs.check_new_run(folder)
    with claimed(folder, folder / ".lock"):
        if not resume:
            runs.check_new_run(folder)  # again: another command may have finished one in between
        yield


def _warn_of_small_data(config: Config, training: FeatureSplit, dev: FeatureSplit) -> None:
    """Say on standard error that there are few steps to learn in, or few images to measure on."""
    train = config.train
    assert train.batch_size is not None
    assert train.epochs is not None
    steps = train.epochs * steps_per_epoch(len(training.split.captions), train.batch_size)
    if steps < FEW_STEPS:
        print(
            f"note: {steps} steps in {train.epochs} epochs of {len(training.split.captions)} captions, too few to "
            "learn much; --config small chooses batch size and epochs for such data",
            file=sys.stderr,
        )
    images = len(dev.split.image_ids)
    if images < FEW_IMAGES:
        by_chance = split_chance(dev.split).rsum
        print(
            f"note: dev has {images} images: a random ranking comes to rsum {by_chance:.1f} of 600, and recall "
            "depends much on which images they are",
            file=sys.stderr,
            flush=True,
        )


def resumed_config(folder: Path, spec: str | None, changes: list[str]) -> Config:
    """The configuration with which a run is resumed: its own, changed only in keys of `RESUMABLE`.

    Args:
        folder: the run folder.
        spec: a shipped configuration or a YAML file, which must agree with the run's; None takes the run's.
        changes: `key=value` arguments.

    Raises:
        InputError: there is no run.
        UsageError: another key differs.
    """
    stored = runs.load_run_config(folder)
    config = override(stored if spec is None else load_config(spec), changes)
    values = {found.name: found.value for found in keys_of(stored)}
    for found in keys_of(config):
        if found.value is None and found.name in ("model.image.dim", *SIZED_KEYS):
            config = with_value(config, found.name, values[found.name])
    changed = differing_keys(stored, config)
    for name in changed:
        if name not in RESUMABLE:
            raise UsageError(f"{folder}: {name}: a resumed run must keep its configuration, but this key differs")
    if "train.epochs" in changed and stored.train.schedule is ScheduleName.cosine:
        raise UsageError(f"{folder}: train.epochs: a cosine schedule cannot be prolonged")
    return config


def _train(
    folder: Path,
    config: Config,
    tokenizer: CaptionTokenizer,
    data: Path,
    splits: tuple[FeatureSplit, FeatureSplit],
    device: torch.device,
    ranks: Ranks,
    resume: bool,
    weights: Path | None,
) -> TrainProgress:
    """Build everything, write or read the folder, and train; `splits` are train and dev."""
    training, dev = splits
    step = build_step(config, tokenizer, device, ranks, pretrained=not resume and weights is None)
    if weights is not None and not resume:
        checkpoints.load_weights(step.model, weights / checkpoints.BEST)
    state = TrainState(step.model, step.optimizer, step.scaler)
    progress = checkpoints.load_state(folder, state) if resume else TrainProgress()
    progress = ranks.broadcast(progress)  # every process has read the folder before rank 0 writes to it
    if ranks.is_main and resume:
        runs.save_run_config(folder, config)
    elif ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.save_state(folder, state, progress)  # so that a run can be resumed before its first epoch ends
        provenance = dict(training.features.provenance)
        if (source := pinned(training.source)) is not None:
            provenance["features"] = source
        if weights is not None and (source := pinned(weights)) is not None:
            provenance["run"] = source
        runs.start_run(folder, config, tokenizer, provenance)
    if ranks.is_main:
        parameters = sum(parameter.numel() for parameter in step.model.parameters())
        clock = TrainingClock(folder, data, training.split, dev.split, parameters)
    pairs, cache = build_training_pairs(config, training, tokenizer, device)
    log = TrainingLog(folder, progress.step) if ranks.is_main else None
    schedule = build_schedule(config)
    try:
        done = run_epochs(Trainer(folder, step, schedule, pairs, cache, config.data.workers, dev, log), progress)
    finally:
        if log is not None:
            log.close()
            with suppress(InputError):  # an error that ended the training is the one to report
                clock.save()
    if ranks.is_main:
        write_card(folder)
        draw_curves(folder, split_chance(dev.split).rsum)
    return done
