"""One trial: a process of its own reads one input, and is watched."""

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from data_tools.errors import InputError, UsageError
from tests.fuzz.mutators.documents import SECRET, TRACE
from tests.fuzz.mutators.families import mutate
from tests.fuzz.mutators.hdf5 import OUTSIDE
from tests.fuzz.targets import INPUT, OUTPUT, Target

CPU_SECONDS, WALL_SECONDS = 30, 90  # of one trial; a valid input takes up to two seconds
MEMORY = 1 << 30  # bytes that a trial may use beyond what it started with
ADDRESSES = 4 << 30  # bytes that it may map beyond that
FILE_SIZE = 1 << 30
STDERR_LINES = 15  # of a refusal, progress and notes included
UNCHANGED = -1  # the seed of the trial that reads the valid input

_OUTWARD = ("socket.connect", "socket.getaddrinfo", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        target, seed: which input; together they make it again.
        verdict: accepted or refused, or what went wrong.
        detail: the last line of the traceback, the signal, or what was reached.
        changes: what was done to the valid input.
        seconds, megabytes: processor time, and memory beyond that at the start.
    """

    target: str
    seed: int
    verdict: str
    detail: str = ""
    changes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def is_failure(self) -> bool:
        """Whether the program is at fault."""
        valid = self.seed == UNCHANGED
        return self.verdict not in (("accepted",) if valid else ("accepted", "refused"))

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def prepare(folder: Path, template: Path, target: Target, seed: int) -> list[str]:
    """Make the input of a trial in `folder`; what was changed."""
    shutil.copytree(template, folder / INPUT, symlinks=True)
    (folder / OUTPUT).mkdir()
    (folder / OUTSIDE).write_text(SECRET * 500)
    return [] if seed == UNCHANGED else mutate(folder / INPUT, target.changed, Random(f"{target.name}:{seed}"))


@dataclass
class Trial:
    """A process that reads one input, and what is known about it."""

    target: Target
    seed: int
    folder: Path
    pid: int
    started: float
    resident: int

    @classmethod
    def start(cls, folder: Path, template: Path, target: Target, seed: int) -> "Trial":
        """Fork a process that makes and reads an input in `folder`."""
        folder.mkdir(parents=True)
        sys.stdout.flush()
        sys.stderr.flush()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        pid = os.fork()
        if pid == 0:
            _child(folder, template, target, seed)
        return cls(target, seed, folder, pid, time.monotonic(), resident)

    def outcome(self) -> Outcome | None:
        """How the trial ended; None while it has not. One that takes too long is killed."""
        late = time.monotonic() - self.started > WALL_SECONDS
        if late:
            self.kill()
        pid, status, usage = os.wait4(self.pid, 0 if late else os.WNOHANG)
        if pid == 0:
            return None
        self.kill()  # processes that it started
        megabytes = max(0.0, (usage.ru_maxrss * 1024 - self.resident) / 1e6)
        report = self._report()
        verdict, detail = ("timeout", f"{WALL_SECONDS} s") if late else self._verdict(status, report, megabytes)
        changes = report.get("changes", [])
        seconds = round(usage.ru_utime + usage.ru_stime, 2)
        return Outcome(self.target.name, self.seed, verdict, detail, changes, seconds, round(megabytes))

    def kill(self) -> None:
        """Kill the process and those that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _report(self) -> dict[str, Any]:
        path = self.folder / "report.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _verdict(self, status: int, report: dict[str, Any], megabytes: float) -> tuple[str, str]:
        errors = (self.folder / "stderr").read_text(errors="replace") if (self.folder / "stderr").exists() else ""
        lines = errors.splitlines()
        if (self.folder / TRACE).exists() or (self.folder / INPUT / TRACE).exists():
            return "code ran", f"{TRACE} was made"
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU:
                return "timeout", f"{CPU_SECONDS} s of processor time; {_place(lines)}"
            return "signal", f"{signal.Signals(number).name}; {_place(lines)}"
        if "verdict" not in report:
            return "ended early", f"exit status {status}; {lines[-1] if lines else ''}"
        if report["outward"]:
            return "reached out", report["outward"][0]
        if self._leaks():
            return "leak", "numbers or text from outside the input are in an output"
        if megabytes * 1e6 > MEMORY:
            return "memory", f"{megabytes:.0f} MB"
        return _manners(report["verdict"], report["detail"], lines)

    def _leaks(self) -> bool:
        outputs = [self.folder / "stdout", self.folder / "stderr", *(self.folder / OUTPUT).rglob("*")]
        needle = SECRET[:24].encode()
        return any(needle in path.read_bytes() for path in outputs if path.is_file())


def _manners(verdict: str, detail: str, lines: list[str]) -> tuple[str, str]:
    """A refusal is a few lines, and no traceback is printed by the way."""
    if verdict in ("accepted", "refused") and any(line.startswith("Traceback (most recent") for line in lines):
        return "traceback", lines[-1][:200]
    if verdict == "refused" and len(lines) > STDERR_LINES:
        return "long message", f"{len(lines)} lines: {lines[-1][:150]}"
    return verdict, detail or (lines[-1][:300] if lines else "")


def _place(lines: list[str]) -> str:
    """The innermost line of our own code in what `faulthandler` wrote."""
    ours = [line.strip() for line in lines if "File" in line and "/tests/fuzz/" not in line]
    own = [line for line in ours if any(f"/{name}/" in line for name in ("data_tools", "extract", "chan"))]
    return (own or ours or [""])[0]


def _child(folder: Path, template: Path, target: Target, seed: int) -> None:
    """The life of a trial's process, which does not return."""
    os.setsid()
    outward: list[str] = []
    try:
        changes = prepare(folder, template, target, seed)
        os.chdir(folder)
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        _write_report({"changes": changes})
        faulthandler.enable(file=2)
        _limit()
        sys.addaudithook(lambda event, given: _note(outward, event, given))
        verdict, detail = _read(target)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        _write_report({"changes": changes, "verdict": verdict, "detail": detail, "outward": outward})
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _note(outward: list[str], event: str, given: tuple[Any, ...]) -> None:
    """Note what reaches outside the process, but for the program's own modules in a process of their own."""
    own = (
        event == "subprocess.Popen"
        and given[0] == sys.executable
        and "data_tools." in " ".join(map(str, given[1]))
    )
    if event in _OUTWARD and not own:
        outward.append(f"{event} {given}"[:200])


def _read(target: Target) -> tuple[str, str]:
    try:
        target.read()
    except (InputError, UsageError) as error:
        if "\n" in str(error):
            return "several lines", str(error)[:300]
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        return "refused", str(error)[:300]
    except BaseException as error:
        traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if any(f"/{n}/" in f.filename for n in ("data_tools", "extract", "chan"))]
        ours = [f for f in ours if "/tests/" not in f.filename and "site-packages" not in f.filename] or list(
            frames
        )
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else ""
        return "traceback", f"{type(error).__name__}: {str(error)[:120]!r} at {place}"
    return "accepted", ""


def _write_report(content: dict[str, Any]) -> None:
    Path("report.json").write_text(json.dumps(content))


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, -1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
