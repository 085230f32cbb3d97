"""Resuming a detector's training from the checkpoint that Detectron2 wrote.

Detectron2's own reader unpickles what a run folder names, wherever that lies, and goes on with random weights if
nothing fits. Here a checkpoint is a file of the run folder, is read as data only, and is checked against the
network and its optimizer before anything of it is loaded.
"""

from pathlib import Path
from typing import Any

from detectron2.engine import DefaultTrainer
from torch.nn.parallel import DistributedDataParallel

from data_tools.errors import InputError, one_line
from data_tools.files import read_text
from data_tools.weights.pickles import read_pickle
from data_tools.weights.states import check_optimizer_state, check_tensors

LAST = "last_checkpoint"  # names the last checkpoint of a run folder


def last_checkpoint(run: Path) -> Path:
    """The last checkpoint of a run folder.

    Raises:
        InputError: the folder has none, or it names a file elsewhere or of another kind.
    """
    name = read_text(run / LAST).strip()
    if Path(name).name != name or not name.endswith(".pth") or "\n" in name:
        raise InputError(f"{run / LAST}: expected the name of a .pth file in this folder, found {name[:80]!r}")
    if not (run / name).is_file() or (run / name).is_symlink():
        raise InputError(f"{run / LAST}: names {name}, and there is no such file in this folder")
    return run / name


def resume_from(path: Path, trainer: DefaultTrainer) -> None:
    """Load a checkpoint into a trainer, which then goes on with the next iteration.

    Raises:
        InputError: the file is damaged, holds anything but plain data and tensors, or does not fit the trainer;
            then nothing was loaded.
    """
    content = read_pickle(path, what="checkpoint")
    model = trainer.model.module if isinstance(trainer.model, DistributedDataParallel) else trainer.model
    optimizer = trainer._trainer.optimizer
    try:
        state = _part(content, "trainer", {"iteration", "hooks", "_trainer"})
        inner = _part(state, "_trainer", {"iteration", "optimizer"})
        check_tensors(_part(content, "model"), model.state_dict())
        check_optimizer_state(inner["optimizer"], optimizer)
        iteration = _iteration(state, inner, trainer.max_iter)
        schedule = _part(_part(state, "hooks", {"LRScheduler"}), "LRScheduler")
        _check_schedule(schedule, trainer.scheduler.state_dict(), iteration)
    except ValueError as error:
        raise InputError(f"{path}: not a checkpoint of this run: {one_line(error)}") from None
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(inner["optimizer"])
    trainer.scheduler.load_state_dict(schedule)
    trainer.iter = trainer._trainer.iter = iteration
    trainer.start_iter = iteration + 1


def _part(content: Any, name: str, keys: set[str] | None = None) -> dict[str, Any]:
    part = content.get(name) if isinstance(content, dict) else None
    if not isinstance(part, dict) or (keys is not None and set(part) != keys):
        raise ValueError(f"{name}: expected an object" + (f" of {', '.join(sorted(keys))}" if keys else ""))
    return part


def _iteration(state: dict[str, Any], inner: dict[str, Any], end: int) -> int:
    iteration = state["iteration"]
    if type(iteration) is not int or inner["iteration"] != iteration or not 0 <= iteration <= end:
        raise ValueError(f"iteration: expected one from 0 to {end}, found {iteration!r}")
    return iteration


def _check_schedule(found: dict[str, Any], expected: dict[str, Any], iteration: int) -> None:
    """Only the count of a schedule changes while it runs."""
    different = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    if not different <= {"last_epoch"} or found.get("last_epoch") not in (iteration, iteration + 1):
        raise ValueError(f"LRScheduler: differs in {', '.join(sorted(map(str, different)))}")
