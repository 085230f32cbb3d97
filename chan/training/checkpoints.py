"""Weights and resumable state of a run, as files in its folder.

RUN/best.safetensors   the weights of the epoch with the best dev rsum
RUN/last.safetensors   the weights of the last finished epoch
RUN/state.pt           what a resumed run needs: weights, optimizer, scaler, counters; saved within long epochs too
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_tools.errors import InputError, one_line
from data_tools.files import replacing
from data_tools.tensor_names import tensor_differences

BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.pt"


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
        InputError: the state is missing, damaged, or of another model.
    """
    path = folder / STATE
    if not path.is_file():
        raise InputError(f"{path}: no such file, so the run cannot be resumed; start a new one in another folder")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.scaler.load_state_dict(content["scaler"])
        return TrainProgress(**content["progress"])
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path}: not the state of this run: {one_line(error)}") from None


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        save_file(weights, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model.

    Raises:
        InputError: the file is missing or damaged, or its names or shapes are not exactly the model's.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; a run writes it when its first epoch ends")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file: {one_line(error)}") from None
    differences = tensor_differences(shapes(weights), shapes(model.state_dict()))
    if differences:
        raise InputError(f"{path}: not the weights of this run's model: {differences}")
    model.load_state_dict(weights)


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name."""
    return {name: tuple(value.shape) for name, value in weights.items()}
