"""The run: modules are imported once, then every input is read by a process forked from this one."""

import importlib
import os
import pkgutil
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.watching import UNCHANGED, Outcome, Trial, prepare

_NOT_IMPORTED = ("triton", "install_detectron2", "__main__", "ray_engine")


def warm_up() -> None:
    """Import what the commands import, so that a forked process reads at once; network and GPU are off."""
    os.environ.update(
        HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", FUZZ_SECRET=_secret(), CUDA_VISIBLE_DEVICES=""
    )
    import torch

    torch.set_num_threads(1)
    for name in ("data_tools", "extract", "chan"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith(_NOT_IMPORTED):
                importlib.import_module(module.name)
    from transformers import AutoModel, BertModel, BertTokenizerFast  # noqa: F401

    from data_tools.captions.tokenization import tokenize

    tokenize("a dog")


def _secret() -> str:
    from tests.fuzz.mutators.documents import SECRET

    return SECRET


def plan(targets: Sequence[Target], inputs: int, seed: int) -> list[tuple[Target, int]]:
    """Which inputs are tried: of every target the valid one, then changed ones by its share."""
    total = sum(target.share for target in targets)
    trials = [(target, UNCHANGED) for target in targets]
    for target in targets:
        count = max(1, round(inputs * target.share / total))
        trials += [(target, number) for number in range(seed, seed + count)]
    return sorted(
        trials, key=lambda trial: trial[1]
    )  # a run that is cut short has tried something of every target


def make_templates(folder: Path, targets: Sequence[Target]) -> None:
    """Write the valid input of every target, in a process of its own, for training starts threads."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 2)
            for target in targets:
                (folder / target.name).mkdir()
                target.make(folder / target.name)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"the valid inputs cannot be made: {(folder / 'log').read_text()[-3000:]}")


def run(
    trials: Sequence[tuple[Target, int]],
    jobs: int,
    seconds: float | None,
    failures: Path | None,
    told: Callable[[Outcome], None],
) -> Iterator[Outcome]:
    """Try inputs, some at a time.

    Args:
        trials: targets and seeds.
        jobs: processes at a time.
        seconds: after which no further input is tried; None tries all.
        failures: folder for the inputs that failed; None keeps none.
        told: called with each failure.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        templates = folder / "templates"
        templates.mkdir()
        make_templates(templates, list(dict.fromkeys(target for target, _ in trials)))
        waiting, running, number = list(trials)[::-1], list[Trial](), 0
        while waiting or running:
            if deadline is not None and time.monotonic() > deadline:
                waiting.clear()
            while waiting and len(running) < jobs:
                target, seed = waiting.pop()
                number += 1
                running.append(Trial.start(folder / str(number), templates / target.name, target, seed))
            for trial in list(running):
                outcome = trial.outcome()
                if outcome is None:
                    continue
                running.remove(trial)
                if outcome.is_failure:
                    told(outcome)
                    if failures is not None:
                        _keep(failures, trial, templates, outcome)
                shutil.rmtree(trial.folder, ignore_errors=True)
                yield outcome
            time.sleep(0.002)


def _keep(failures: Path, trial: Trial, templates: Path, outcome: Outcome) -> None:
    """Make the input of a failed trial once more, in a process of its own, and keep it with what was printed."""
    folder = failures / f"{outcome.target}-{outcome.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    pid = os.fork()
    if pid == 0:
        try:
            folder.mkdir(parents=True)
            prepare(folder, templates / outcome.target, trial.target, outcome.seed)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    for name in ("stdout", "stderr", "report.json"):
        if (trial.folder / name).is_file():
            shutil.copy(trial.folder / name, folder / name)


def targets_called(names: Sequence[str]) -> list[Target]:
    """The targets whose names begin with any of these; all for no name."""
    chosen = [target for target in TARGETS if not names or target.name.startswith(tuple(names))]
    if not chosen:
        raise SystemExit(f"no such target; the targets are {', '.join(target.name for target in TARGETS)}")
    return chosen
