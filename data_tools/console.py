"""What every command shows on the terminal: one-line errors, progress, JSON."""

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from data_tools.errors import InputError, UsageError
from data_tools.workers import worker_death

if TYPE_CHECKING:  # rich takes a tenth of a second, and only a progress bar needs it
    import rich.progress

PLAIN_INTERVAL = 10.0  # seconds between the plain progress lines written where there is no terminal


class UserInterruptError(Exception):
    """The user interrupted a command; the message says how to continue and may be empty."""


def run(app: Callable[[], Any]) -> None:
    """Run a command-line application and end the process with the project's exit codes.

    0 is success, 1 a failure of the work (`InputError`), 2 wrong use (`UsageError`, and what typer rejects),
    130 an interruption by the user (Ctrl-C).
    """
    try:
        app()
    except UserInterruptError as error:
        print(": ".join(("interrupted", *filter(None, error.args))), file=sys.stderr, flush=True)
        sys.exit(130)
    except InputError as error:
        sys.exit(_complain(error, code=1))
    except UsageError as error:
        sys.exit(_complain(error, code=2))
    except RuntimeError as error:
        if not worker_death(error):
            raise
        sys.exit(_complain(worker_death(error), code=1))
    except OSError as error:  # not caught below: a file vanished, a folder may not be written
        sys.exit(_complain(f"{error.filename or 'input or output'}: {error.strerror or error}", code=1))


def _complain(message: object, code: int) -> int:
    text = str(message).strip()
    if "Original Traceback" in text:  # PyTorch's account of an error in one of its workers
        text = text.splitlines()[-1].split("Error: ", 1)[-1]
    print(f"error: {text}", file=sys.stderr, flush=True)
    return code


def entry_point(app: Callable[[], Any]) -> Callable[[], None]:
    """A console script that runs `app` with the project's error lines and exit codes."""
    return lambda: run(app)


def print_json(value: Any) -> None:
    """Print `value` as one JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def _bar() -> "rich.progress.Progress":
    import rich.console
    import rich.progress

    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TextColumn("{task.fields[left]}"),
        rich.progress.TextColumn("{task.fields[note]}"),
        console=rich.console.Console(stderr=True),
    )


class Progress:
    """A progress bar on a terminal and a plain line every ten seconds elsewhere, both on standard error.

    Args:
        what: the work, in one or two words.
        total: number of units.
        unit: plural name of a unit.
        done: units that an earlier run finished; they do not count in the rate.
        later: units of the same job that later bars will show; the time left includes them.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, later: int = 0) -> None:
        self.what, self.total, self.unit, self.later = what, total, unit, later
        self._resumed = self._done = done
        self._start = self._last_line = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(what, total=total, completed=done, rate="", left="", note="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._line("")

    @property
    def rate(self) -> float:
        """Units per second since this run began."""
        return (self._done - self._resumed) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units as done; `note` is shown after the rate."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=self._speed(), left=self._left(), note=note)
        elif self._done < self.total and time.monotonic() - self._last_line >= PLAIN_INTERVAL:
            self._line(note)  # the last line is written on leaving

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        text = ", ".join(filter(None, [f"{self._done}/{self.total} {self.unit}", self._speed(), self._left()]))
        print(f"{self.what}: {text}{'  ' + note if note else ''}", file=sys.stderr, flush=True)

    def _speed(self) -> str:
        if self.rate >= 1 or self.rate == 0:
            return f"{self.rate:.1f} {self.unit}/s"
        return f"{1 / self.rate:.1f} s per {self.unit.removesuffix('s')}"

    def _left(self) -> str:
        units = self.total - self._done + self.later
        return f"{duration(units / self.rate)} left" if units > 0 and self.rate > 0 else ""


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(45), duration(754), duration(12000)
    ('45 s', '13 min', '3 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
