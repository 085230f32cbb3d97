"""Progress where standard error is no terminal."""

import pytest

from data_tools import console
from data_tools.console import Progress


def test_every_count_has_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0)
    with Progress("reading", 3, "images") as progress:
        for _ in range(3):
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" images")[0] for line in lines] == ["reading: 1/3", "reading: 2/3", "reading: 3/3"]


def test_lines_come_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 1000, "images", done=500) as progress:
        for _ in range(500):
            progress.advance()
    assert capsys.readouterr().err.splitlines()[0].startswith("reading: 1000/1000 images, ")


def test_slow_work_has_seconds_per_unit_and_the_time_of_the_whole_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, *100 * [20.0]])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Progress("epoch 1/3", 10, "steps", later=20) as progress:
        progress.advance(4, note="loss 1")
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "epoch 1/3: 4/10 steps, 5.0 s per step, 2 min left  loss 1"  # 26 steps of 5 s


def test_a_failure_has_no_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), Progress("reading", 3, "images"):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("reading", 3, "images") as progress:
        progress.advance(3, note="done")
    error = capsys.readouterr().err
    assert "reading" in error
    assert "3/3" in error
    assert "images/s" in error
