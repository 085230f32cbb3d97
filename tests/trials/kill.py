"""Kill commands at random moments, run them again until they are done, and compare the bytes of their results.

`python -m tests.trials.kill`, or `make trials`. Each trial starts a command in a process group of its own, waits
until it has written something, and then a random share of the time that an undisturbed run works; SIGKILL ends the
whole group. The shares are drawn from `--seed` and recorded. After one to three kills the command is run until it
ends by itself; what it wrote must be equal to what the undisturbed run wrote, with no other file beside it.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

BIN = Path(sys.executable).parent
TIMEOUT = 300  # seconds of one run
Command = Callable[[Path], list[object]]  # the arguments of a run whose results lie in a folder


@dataclass(frozen=True)
class Work:
    """A command whose runs are killed.

    Attributes:
        name: as in the table of results.
        command: its arguments for an output folder, looked up before every run since a resumed one may differ.
        prepare: puts what the command needs into the output folder before the first run.
    """

    name: str
    command: Command
    prepare: Callable[[Path], None] = lambda folder: None


@dataclass(frozen=True)
class Trial:
    """What one trial gave.

    Attributes:
        work, number: which trial.
        shares: of the undisturbed run's working time after which each kill came.
        kills: how many came before the command had ended by itself.
        problem: what is not as in the undisturbed run; empty where nothing is.
        seconds: of the whole trial.
    """

    work: str
    number: int
    shares: list[float]
    kills: int
    problem: str
    seconds: float


def start(arguments: Sequence[object]) -> subprocess.Popen:
    """Start a command in a process group of its own."""
    line = [sys.executable, "-c", _PROGRAMS[str(arguments[0])], *map(str, arguments[1:])]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


_PROGRAMS = {
    "extract-features": "from extract.command_line import extract_features as run; run()",
    "chan": "from chan.command_line import chan as run; run()",
    "data-tools": "from data_tools.command_line import data_tools as run; run()",
}


def finish(arguments: Sequence[object]) -> str:
    """Run a command to its end; its last line on standard error where it failed, else an empty text."""
    process = start(arguments)
    errors = process.communicate(timeout=TIMEOUT)[1].decode(errors="replace")
    return f"exit code {process.returncode}: {errors.strip().splitlines()[-1]}" if process.returncode else ""


def kill_after(arguments: Sequence[object], folder: Path, seconds: float) -> bool:
    """Run a command and kill its group `seconds` after it first writes to `folder`; whether it still ran."""
    before, process = _state(folder), start(arguments)
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and _state(folder) == before and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(seconds)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return killed


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file in a folder."""
    found = []
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # renamed or removed in this moment
            continue
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return sorted(found)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a run left, by name, without what differs between any two runs.

    That is speeds in metrics, names of folders, and which equal texts of a pickle are one object. Logs and
    TensorBoard's events are left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if (
            path.is_file()
            and "events.out.tfevents" not in path.name
            and path.name not in ("log.txt", "metrics.json", "training.json", "README.md")
        ):
            found[str(path.relative_to(folder))] = hashlib.sha256(_comparable(path)).hexdigest()
    return found


def _comparable(path: Path) -> bytes:
    if path.name == "metrics.jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return json.dumps([{k: v for k, v in record.items() if k != "pairs_per_s"} for record in records]).encode()
    if path.name == "config.yaml":
        return b"".join(line for line in path.read_bytes().splitlines() if not line.startswith(b"OUTPUT_DIR"))
    if path.suffix in (".pt", ".pth"):
        import torch

        return repr(_plain(torch.load(path, map_location="cpu", weights_only=True))).encode()
    return path.read_bytes()


def _plain(value: Any) -> Any:
    """A state with the bytes of its tensors instead of them."""
    if isinstance(value, dict):
        return sorted((str(key), _plain(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "numpy"):
        return value.dtype, tuple(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()
    return value


def differences(found: dict[str, str], expected: dict[str, str]) -> str:
    """Which files are missing, unexpected or different; empty where none is."""
    kinds = {
        "missing": [name for name in expected if name not in found],
        "left": [name for name in found if name not in expected],
        "different": [name for name in expected if name in found and found[name] != expected[name]],
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)


def measure(work: Work, folder: Path) -> tuple[dict[str, str], float]:
    """Run a command undisturbed: what it wrote, and the seconds from its first file to its end."""
    folder.mkdir(parents=True)
    work.prepare(folder)
    before, process, first = _state(folder), start(work.command(folder)), 0.0
    while process.poll() is None:
        if not first and _state(folder) != before:
            first = time.monotonic()
        time.sleep(0.002)
    errors = process.communicate()[1].decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"{work.name}: the undisturbed run failed: {errors[-2000:]}")
    return contents(folder), time.monotonic() - (first or time.monotonic())


def attempt(work: Work, number: int, folder: Path, expected: dict[str, str], seconds: float, rng: Random) -> Trial:
    """One trial in `folder`; see the head of the module."""
    began, shares, kills = (
        time.monotonic(),
        [round(0.8 * rng.random(), 3) for _ in range(rng.choice((1, 1, 2, 3)))],
        0,
    )
    folder.mkdir(parents=True)
    work.prepare(folder)
    for share in shares:
        if not kill_after(work.command(folder), folder, share * seconds):
            break
        kills += 1
    problem = differences(contents(folder), expected)
    if problem and kills == len(shares):  # otherwise the last kill came after the last write
        problem = finish(work.command(folder)) or differences(contents(folder), expected)
    return Trial(work.name, number, shares, kills, problem, round(time.monotonic() - began, 1))


def works(data: Path) -> Iterator[Work]:
    """The commands, on drawn scenes and small stores in `data`."""
    scenes = data / "scenes"
    for workers in (0, 1):
        yield Work(
            f"extraction, {workers} workers",
            lambda folder, workers=workers: [  # type: ignore[misc]
                *(
                    "extract-features",
                    scenes / "images",
                    "--config",
                    "scenes",
                    "--weights",
                    "random",
                    "--part-size",
                    4,
                ),
                *("--workers", workers, "--device", "cpu", "--out", folder / "f.h5"),
            ],
        )
    for workers in (0, 2):
        yield Work(f"training, {workers} workers", lambda folder, workers=workers: _train(data, folder, workers))  # type: ignore[misc]
    yield Work("conversion", lambda folder: ["data-tools", "convert", data / "big.npy", "--out", folder / "f.h5"])
    yield Work(
        "join", lambda folder: ["data-tools", "join", data / "a.h5", data / "b.h5", "--out", folder / "f.h5"]
    )


def _train(data: Path, folder: Path, workers: int) -> list[object]:
    settings = ("model.dim=32", "train.epochs=4", "train.batch_size=16", f"data.workers={workers}")
    begun = (folder / "run" / "config.yaml").is_file()
    how = ("--resume",) if begun else ("--config", "scenes", *settings)
    features = ("--features", data / "features.h5", "--device", "cpu")
    return ["chan", "train", *how, "--data", data / "scenes", *features, "--out", folder / "run"]


def make_data(folder: Path) -> None:
    """Scenes, features of them, and stores to convert and join."""
    from data_tools.scenes.dataset import write_scenes
    from data_tools.store.schema import Block, StoreSchema
    from data_tools.store.writing import write_store

    write_scenes(folder / "scenes", train=40, dev=8, test=8, seed=3)
    names = ("train", "dev", "test")
    ids = [line for name in names for line in (folder / "scenes/precomp" / f"{name}_ids.txt").read_text().split()]
    rng = np.random.default_rng(0)

    def store(path: Path, image_ids: list[str], dim: int) -> None:
        features = rng.normal(size=(36 * len(image_ids), dim)).astype(np.float32)
        block = Block(image_ids, np.full(len(image_ids), 36), {"features": features})
        write_store(path, [block], StoreSchema.of([block]), {"selection": "random"})

    store(folder / "features.h5", ids, 64)
    store(folder / "a.h5", [f"a{n}" for n in range(600)], 2048)
    store(folder / "b.h5", [f"b{n}" for n in range(600)], 2048)
    np.save(folder / "big_ims.npy", rng.normal(size=(1000, 36, 2048)).astype(np.float32))
    (folder / "big_ims.npy").rename(folder / "big.npy")
    (folder / "big_ids.txt").write_text("".join(f"{n}\n" for n in range(1000)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; the exit code is 1 where a trial has a problem."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.trials.kill", description=(__doc__ or "").splitlines()[0]
    )
    for name, count in (("extraction", 20), ("training", 20), ("conversion", 6), ("join", 6)):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"trials of {name}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/trials"), help="folder for data and results")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    out = options.out.resolve()
    make_data(out)
    os.environ["OMP_NUM_THREADS"] = "1"  # the order of sums depends on the number of threads
    trials = [trial for work in works(out) for trial in _tried(work, options, out)]
    print(text := as_text(trials))
    (out / "results.txt").write_text(f"{text}\n")
    document = {"seed": options.seed, "trials": [asdict(trial) for trial in trials]}
    (out / "results.json").write_text(json.dumps(document, indent=1))
    return int(any(trial.problem for trial in trials))


def _tried(work: Work, options: argparse.Namespace, out: Path) -> Iterator[Trial]:
    """The trials of one command; half of those of its kind where the kind has two numbers of workers."""
    kind, _, workers = work.name.partition(",")
    count = getattr(options, kind)
    count = count // 2 if workers else count
    if not count:
        return
    expected, seconds = measure(work, out / work.name / "undisturbed")
    for number in range(count):
        folder = out / work.name / str(number)
        trial = attempt(work, number, folder, expected, seconds, Random(f"{work.name}:{options.seed}:{number}"))
        line = f"{work.name} {number}: kills {trial.kills} of {trial.shares}: {trial.problem or 'equal'}"
        print(line, file=sys.stderr, flush=True)
        if not trial.problem:
            shutil.rmtree(folder)
        yield trial


def as_text(trials: Sequence[Trial]) -> str:
    """A line per command, and a line per trial with a problem."""
    lines = [f"{'command':24}{'trials':>8}{'kills':>8}{'equal':>8}"]
    for name in dict.fromkeys(trial.work for trial in trials):
        own = [trial for trial in trials if trial.work == name]
        equal = sum(not trial.problem for trial in own)
        lines.append(f"{name:24}{len(own):>8}{sum(trial.kills for trial in own):>8}{equal:>8}")
    lines += [f"{t.work} {t.number}: {t.shares}: {t.problem}" for t in trials if t.problem]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
