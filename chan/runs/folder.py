"""The folder of a run, which holds all that is needed to repeat, resume or use it.

RUN/config.yaml            every key, resolved
RUN/features.json          how the features were made that the run was trained on, as their file says
RUN/vocab.json or bert/    what turned captions into ids: the vocabulary, or BERT's tokenizer and architecture
RUN/best.safetensors       the weights of the epoch with the best dev rsum
RUN/last.safetensors       the weights of the last finished epoch
RUN/state.pt               what a resumed run needs: weights, optimizer, counters, best score; also within an epoch
RUN/metrics.jsonl          and TensorBoard's event files: see `chan.training.log`
"""

import json
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chan.config import Config, TextEncoderName, read_config, save_config
from chan.data.splits import FeatureSplit
from chan.model.chan import Chan, build_model
from chan.text.tokenizers import BertTokenizer, CaptionTokenizer, VocabularyTokenizer
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError, UsageError
from data_tools.files import read_json, replace_file, replacing

CONFIG, FEATURES, STATE = "config.yaml", "features.json", "state.pt"
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass
class TrainProgress:
    """How far a run is."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps, of all epochs
    epoch_step: int = 0  # finished steps of the unfinished epoch
    best_rsum: float = -1.0  # best dev rsum so far; below any where there is none
    best_epoch: int = -1  # the epoch, counted from 0, that has it


def start_run(folder: Path, config: Config, reader: CaptionTokenizer, provenance: dict[str, str]) -> None:
    """Make the folder of a new run, for features made as `provenance` says.

    Raises:
        UsageError: the folder already holds a run.
    """
    check_new_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {error.strerror}") from None
    reader.save(folder)
    replace_file(folder / FEATURES, json.dumps(provenance, indent=2).encode())
    save_config(config, folder / CONFIG)  # last: where it lies there is a run


def check_new_run(folder: Path) -> None:
    """`UsageError` where `folder` already holds a run."""
    if (folder / CONFIG).exists():
        raise UsageError(f"{folder}: holds a run already; continue it with --resume or choose another --out")


def check_provenance(folder: Path, opened: FeatureSplit) -> None:
    """Refuse features that were made otherwise than those that the run was trained on.

    What decides is the weights and the selection rule; a file that does not say how it was made (SCAN's
    arrays, imported checkpoints) is taken as it is.

    Raises:
        InputError: either differs.
    """
    path = folder / FEATURES
    trained = read_json(path) if path.is_file() else {}
    if not isinstance(trained, dict):
        raise InputError(f"{path}: expected an object of names and values")
    check_same_features(trained, f"the run {folder}", opened)


def check_same_features(expected: dict[str, str], whose: str, opened: FeatureSplit) -> None:
    """`InputError` where the split's features have other weights or another selection than `whose`."""
    for key, name in (("weights_sha256", "weights"), ("selection", "selection")):
        ours, theirs = opened.features.provenance.get(key), expected.get(key)
        if ours and theirs and ours != theirs:
            raise InputError(
                f"{opened.source}: its features were made with {name} {ours}, those of {whose} with {theirs}"
            )


def load_run_config(folder: Path) -> Config:
    """The resolved configuration of a run; `InputError` where there is no run."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: holds no run (no {CONFIG})")
    return read_config(folder / CONFIG)


def keep_config(folder: Path, config: Config) -> None:
    """Replace the configuration of a run that goes on with more epochs."""
    save_config(config, folder / CONFIG)


def load_reader(folder: Path, config: Config) -> CaptionTokenizer:
    """What turns captions into ids in this run."""
    if config.model.text.encoder is TextEncoderName.bert:
        return BertTokenizer(str(folder / "bert"))
    return VocabularyTokenizer(Vocabulary.load(folder / "vocab.json"))


def load_best_model(folder: Path, device: torch.device) -> tuple[Chan, int, CaptionTokenizer]:
    """The model of a run with its best weights, on `device`; its feature dimension; its caption reader.

    Raises:
        InputError: there is no run, no epoch of it is finished, or its files do not fit together.
    """
    config = load_run_config(folder)
    reader = load_reader(folder, config)
    dim = config.model.image.dim
    if dim is None:
        raise InputError(f"{folder / CONFIG}: model.image.dim: expected the number that the run used")
    model = build_model(config.model, dim, reader, pretrained=False)
    load_weights(model, folder / BEST)
    return model.to(device), dim, reader


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file whose names and shapes must be exactly the model's."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; a run writes it when its first epoch ends")
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(f"{path}: not the weights of this run's model: {_one_line(error)}") from None


@dataclass(frozen=True)
class TrainState:
    """What changes from step to step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def save_epoch(folder: Path, learning: TrainState, progressed: TrainProgress) -> None:
    """Write an epoch's weights and state.

    Each file is written whole or not at all, and the state, alone enough to resume, last: a crash between
    two of them repeats what came after the state before, with the same outcome.
    """
    weights = {name: value.detach().contiguous() for name, value in learning.model.state_dict().items()}
    if progressed.best_epoch == progressed.epoch - 1:
        save_weights(weights, folder / BEST)
    save_weights(weights, folder / LAST)
    save_state(folder, learning, progressed)


def save_state(folder: Path, learning: TrainState, progressed: TrainProgress) -> None:
    """Write what a resumed run needs; a new run has it before its first step."""
    state = {
        "model": learning.model.state_dict(),
        "optimizer": learning.optimizer.state_dict(),
        "scaler": learning.scaler.state_dict(),
        "progressed": asdict(progressed),
    }
    with replacing(folder / STATE) as temporary:
        torch.save(state, temporary)


def load_state(folder: Path, learning: TrainState) -> TrainProgress:
    """Put the last saved state into the model, the optimizer and the scaler.

    Raises:
        InputError: the state is missing, damaged, or of another model.
    """
    path = folder / STATE
    if not path.is_file():
        raise InputError(f"{path}: no such file, so the run cannot go on; begin it anew in another folder")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        learning.model.load_state_dict(state["model"])
        learning.optimizer.load_state_dict(state["optimizer"])
        learning.scaler.load_state_dict(state["scaler"])
        return TrainProgress(**state["progressed"])
    except (
        OSError,
        EOFError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise InputError(f"{path}: not the state of this run: {_one_line(error)}") from None


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        save_file(weights, temporary)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
