"""The command `data-tools` in this process: what its help says of the data that is shipped, and wrong use."""

import json
import sys
from pathlib import Path

import pytest

import data_tools.detection.labels
from data_tools.command_line import data_tools as entry

LABELS = Path(data_tools.detection.labels.__file__).parent / "label_sets"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of the command."""
    monkeypatch.setattr(sys, "argv", ["data-tools", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        entry()
    return int(ended.value.code or 0), *capsys.readouterr()


@pytest.mark.parametrize("command", ["inspect", "visual-genome"])
def test_the_shipped_labels_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, out, _ = run(monkeypatch, capsys, command, "--help")
    said = out.split("a shipped list (")[1].split(")")[0]
    assert code == 0
    assert set(said.split(", ")) == {path.stem for path in LABELS.glob("*.json")}


def test_scenes_says_what_it_wrote(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    counts = {"train": 3, "dev": 2, "test": 1}
    arguments = [f"--{name}={count}" for name, count in counts.items()]
    code, out, _ = run(monkeypatch, capsys, "scenes", "--out", tmp_path / "scenes", *arguments, "--json")
    assert (code, json.loads(out)) == (0, {"data": str(tmp_path / "scenes"), **counts})
    for name, count in counts.items():
        ids = (tmp_path / "scenes" / "precomp" / f"{name}_ids.txt").read_text().split()
        assert len(set(ids)) == count


def test_a_store_is_not_overwritten_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.h5").write_text("kept")
    code, _, error = run(monkeypatch, capsys, "join", tmp_path / "b.h5", "--out", tmp_path / "a.h5")
    assert code == 2
    assert str(tmp_path / "a.h5") in error
    assert "--overwrite" in error
    assert (tmp_path / "a.h5").read_text() == "kept"
