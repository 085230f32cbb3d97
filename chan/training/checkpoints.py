"""Weights and resumable state of a run, as files in its folder.

RUN/best.safetensors   the weights of the epoch with the best dev rsum
RUN/last.safetensors   the weights of the last finished epoch
RUN/state.pt           what a resumed run needs: weights, optimizer, scaler, counters; saved within long epochs too
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_tools.errors import InputError, one_line, reading
from data_tools.files import replacing
from data_tools.weights.pickles import read_pickle
from data_tools.weights.states import check_optimizer_state, check_scaler_state, check_tensors
from data_tools.weights.tensor_names import tensor_differences

BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.pt"
STATE_KEYS = {"model", "optimizer", "scaler", "progress"}
MAX_COUNT = 10**10  # of steps: more than anybody takes


@dataclass
class TrainProgress:
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps, of all epochs
    epoch_step: int = 0  # finished steps of the unfinished epoch
    best_rsum: float = -1.0  # best dev rsum so far; -1 before the first validation
    best_epoch: int = -1  # the epoch, counted from 0, that has it; -1 before the first validation


@dataclass(frozen=True)
class TrainState:
    """The objects that a training step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def save_epoch(folder: Path, state: TrainState, progress: TrainProgress) -> None:
    """Write the weights and the state after an epoch.

    Each file is written whole or not at all, the state last. A resumed run needs the state alone: after a crash
    between two files it repeats the steps since the previous state, with the same result.
    """
    weights = {name: value.detach().contiguous() for name, value in state.model.state_dict().items()}
    if progress.best_epoch == progress.epoch - 1:
        save_weights(weights, folder / BEST)
    save_weights(weights, folder / LAST)
    save_state(folder, state, progress)


def save_state(folder: Path, state: TrainState, progress: TrainProgress) -> None:
    """Write what a resumed run needs."""
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "progress": asdict(progress),
    }
    with replacing(folder / STATE) as temporary:
        torch.save(content, temporary)


def load_state(folder: Path, state: TrainState) -> TrainProgress:
    """Load the saved state into the model, the optimizer and the scaler; returns how far the run had come.

    Raises:
        InputError: the state is missing, damaged, or of another model; then nothing is loaded.
    """
    path = folder / STATE
    if not path.is_file():
        raise InputError(f"{path}: no such file, so the run cannot be resumed; start a new one in another folder")
    content = read_pickle(path, what="state of a run")
    if not isinstance(content, dict) or set(content) != STATE_KEYS:
        raise InputError(f"{path}: not the state of a run: expected the keys {', '.join(sorted(STATE_KEYS))}")
    try:  # all is checked before anything is loaded
        check_tensors(content["model"], state.model.state_dict())
        check_optimizer_state(content["optimizer"], state.optimizer)
        check_scaler_state(content["scaler"], state.scaler)
        progress = _checked_progress(content["progress"])
    except ValueError as error:
        raise InputError(f"{path}: not the state of this run: {one_line(error)}") from None
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scaler.load_state_dict(content["scaler"])
    return progress


def _checked_progress(found: Any) -> TrainProgress:
    """How far a run had come; `ValueError` where the counters cannot be those of a run."""
    names = {field.name for field in fields(TrainProgress)}
    if not isinstance(found, dict) or set(found) != names:
        raise ValueError(f"progress: expected the keys {', '.join(sorted(names))}")
    for name, value in found.items():
        kind = float if name == "best_rsum" else int
        if type(value) is not kind or not -1 <= value < MAX_COUNT:
            raise ValueError(
                f"progress: {name}: expected {'a number' if kind is float else 'a count'}, found {value!r}"
            )
    progress = TrainProgress(**found)
    if min(progress.epoch, progress.step, progress.epoch_step) < 0 or progress.best_epoch >= max(
        progress.epoch, 1
    ):
        raise ValueError(f"progress: the counters contradict one another: {found}")
    return progress


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        save_file(weights, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model.

    Raises:
        InputError: the file is missing or damaged, or its names or shapes are not exactly the model's.
    """
    _check_exists(path)
    with reading(path, "not a safetensors file"):
        weights = load_file(path)
    try:
        check_tensors(weights, model.state_dict())
    except ValueError as error:
        raise InputError(f"{path}: not the weights of this run's model: {error}") from None
    model.load_state_dict(weights)


def check_shapes(model: nn.Module, path: Path) -> None:
    """Compare a safetensors file with a model that may lie on the device `meta`, before either takes memory.

    Raises:
        InputError: the file is missing or damaged, or its names or shapes are not exactly the model's.
    """
    _check_exists(path)
    with reading(path, "not a safetensors file"), safe_open(path, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if differences := tensor_differences(found, expected):
        raise InputError(f"{path}: not the weights of this run's model: {differences}")


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file; a run writes it when its first epoch ends")
