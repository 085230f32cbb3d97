"""Exit codes and error lines of an application that is declared with the shared settings."""

import subprocess
import sys
from collections.abc import Callable
from typing import Annotated

import pytest

from data_tools.console import entry_point
from data_tools.errors import InputError, UsageError
from data_tools.options import RUN, command, flag, make_group, option

Body = Callable[[], None]


def raising(error: BaseException) -> Body:
    def body() -> None:
        raise error

    return body


def ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], body: Body, *arguments: str
) -> tuple[int, str]:
    """Exit code and error line of an application whose command `work` runs `body`."""
    app = make_group("tool", "A tool.")

    @command(app, "tool work", resuming="the same command continues")
    def work() -> None:
        """Do the work."""
        body()

    monkeypatch.setattr(sys, "argv", ["tool", *(arguments or ("work",))])
    with pytest.raises(SystemExit) as ended:
        entry_point(app)()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.h5: no features"), 1, "error: a.h5: no features\n"),
        (UsageError("--a goes with --b"), 2, "error: --a goes with --b\n"),
        (FileNotFoundError(2, "No such file", "a.h5"), 1, "error: a.h5: No such file\n"),
        (OSError("disk on fire"), 1, "error: input or output: disk on fire\n"),
        (KeyboardInterrupt(), 130, "interrupted: the same command continues\n"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    assert ends(monkeypatch, capsys, raising(error)) == (code, line)


def test_success_is_0_and_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(monkeypatch, capsys, lambda: None) == (0, "")


def test_an_error_of_the_program_has_a_plain_traceback() -> None:
    program = (
        "from data_tools.options import command, make_group; from data_tools.console import entry_point;"
        "import sys; sys.argv = ['tool', 'work']; app = make_group('tool', 'A tool.');"
        "command(app, 'tool work', name='work')(lambda: 1 / 0); entry_point(app)()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("\nZeroDivisionError: division by zero\n")


def test_without_arguments_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_group("tool", "A tool.")
    command(app, "tool work")(lambda: None)
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit) as ended:
        entry_point(app)()
    assert ended.value.code == 2
    assert "A tool." in capsys.readouterr().out


def test_a_command_keeps_its_signature_and_its_paragraphs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_group("tool", "A tool.")

    @command(app, "tool work --times 2", name="work")
    def repeat(
        *,
        times: Annotated[int, option(RUN, "Number of times.", metavar="N", min=1)] = 1,
        loudly: Annotated[bool, flag(RUN, "Print in capitals.", "--loudly")] = False,
    ) -> None:
        """Do the work.

        The second paragraph is longer than one line of the source, and its lines are joined
        before the terminal breaks them anew.
        """
        print("WORK " * times if loudly else "work " * times)

    repeat(times=1)  # still a function
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in (["--times", "2", "--loudly"], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["tool", "work", *arguments])
        with pytest.raises(SystemExit):
            entry_point(app)()
    out = capsys.readouterr().out
    assert out.startswith("work \nWORK WORK \n")
    assert "its lines are joined before the terminal breaks them anew." in out
