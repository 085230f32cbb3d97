"""The folder of a run, which holds all that is needed to repeat, resume or use it.

RUN/config.yaml            every key, resolved
RUN/features.json          how the features were made that the run was trained on, as their file states it
RUN/vocab.json or bert/    the tokenizer: the vocabulary, or BERT's tokenizer and architecture
RUN/*.safetensors, state.pt    weights and resumable state: see `chan.training.checkpoints`
RUN/metrics.jsonl          and TensorBoard's event files: see `chan.training.log`
RUN/training.json, recall.json, README.md    the training, its results: see `chan.runs.record`, `chan.runs.card`
"""

import hashlib
import shutil
from pathlib import Path

import torch

from chan.build import build_model
from chan.config import Config, TextEncoderName, read_config, save_config
from chan.data.splits import FeatureSplit, check_dim, open_split
from chan.model.chan import Chan
from chan.runs.hub import fetched_features, fetched_run
from chan.runs.provenance import check_provenance, load_provenance, save_provenance
from chan.text.tokenizers import BertTokenizer, CaptionTokenizer, VocabularyTokenizer
from chan.training.checkpoints import BEST, check_shapes, load_weights
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError, UsageError, reading
from data_tools.files import replacing
from data_tools.weights.hub import pinned

CONFIG = "config.yaml"


def check_new_run(folder: Path) -> None:
    """`UsageError` where `folder` already holds a run."""
    if (folder / CONFIG).exists():
        raise UsageError(f"{folder}: holds a run already; continue it with --resume or choose another --out")


def start_run(folder: Path, config: Config, tokenizer: CaptionTokenizer, provenance: dict[str, str]) -> None:
    """Write the folder of a new run, for features made as `provenance` states.

    Raises:
        InputError: the folder cannot be made or written.
        UsageError: the folder already holds a run.
    """
    check_new_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from None
    tokenizer.save(folder)
    save_provenance(folder, provenance)
    save_run_config(folder, config)  # last: a folder with this file is a run


def load_run_config(folder: Path) -> Config:
    """The resolved configuration of a run; `InputError` where there is no run."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: holds no run (no {CONFIG})")
    return read_config(folder / CONFIG)


def save_run_config(folder: Path, config: Config) -> None:
    """Write, or replace, the configuration of a run."""
    save_config(config, folder / CONFIG)


def load_tokenizer(folder: Path, config: Config) -> CaptionTokenizer:
    """The tokenizer of a run; `InputError` where its files are missing or damaged."""
    if config.model.text.encoder is TextEncoderName.bert:
        return BertTokenizer(str(folder / "bert"))
    return VocabularyTokenizer(Vocabulary.load(folder / "vocab.json"))


def load_best_model(folder: Path, device: torch.device) -> tuple[Chan, int, CaptionTokenizer]:
    """The model of a run with its best weights, on `device`; its feature dimension; its tokenizer.

    Raises:
        InputError: there is no run, no epoch of it is finished, or its files do not fit together.
    """
    config = load_run_config(folder)
    tokenizer = load_tokenizer(folder, config)
    dim = config.model.image.dim
    if dim is None:
        raise InputError(f"{folder / CONFIG}: model.image.dim: expected the run's feature dimension, found null")
    with torch.device("meta"):  # a shared run's configuration may claim any size
        check_shapes(build_model(config.model, dim, tokenizer, pretrained=False), folder / BEST)
    model = build_model(config.model, dim, tokenizer, pretrained=False)
    load_weights(model, folder / BEST)
    return model.to(device), dim, tokenizer


def copy_model(run: Path, folder: Path) -> None:
    """Copy what `load_best_model` reads of a run to another folder, which then can be used like the run.

    Raises:
        InputError: the run lacks a file, or the folder cannot be written.
    """
    run = fetched_run(run)
    config = load_run_config(run)
    provenance = load_provenance(run) | ({"run": source} if (source := pinned(run)) else {})
    start_run(folder, config, load_tokenizer(run, config), provenance)
    if not (run / BEST).is_file():
        raise InputError(f"{run / BEST}: no such file; fix: train until an epoch is finished")
    with replacing(folder / BEST) as temporary:
        shutil.copyfile(run / BEST, temporary)


def weights_sha256(run: Path) -> str:
    """SHA-256 of a run's best weights, in hexadecimal; `InputError` where they cannot be read."""
    with reading(run / BEST), (run / BEST).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_run(
    folder: Path, device: torch.device, data: Path, split: str, features: Path | None
) -> tuple[Chan, CaptionTokenizer, FeatureSplit]:
    """The best model of a run on `device`, its tokenizer, and a split whose features it can be used on.

    Args:
        folder: the run folder.
        device: where the model goes.
        data: the data folder.
        split: name of the split.
        features: as for `open_split`.

    Raises:
        InputError: the run or the split cannot be read, or the features have another dimension than the run's or
            were made by another detector or selection.
        UsageError: it is not clear which features are meant.
    """
    folder = fetched_run(folder)
    model, dim, tokenizer = load_best_model(folder, device)
    feature_split = open_split(data, split, fetched_features(features))
    check_dim(feature_split, dim)
    check_provenance(folder, feature_split)
    return model, tokenizer, feature_split
