"""Reading and writing files: errors of libraries as one line, outputs that are probed before work begins."""

from pathlib import Path

import pytest

from data_tools.errors import InputError, UsageError, reading
from data_tools.files import check_writable


@pytest.mark.parametrize(
    "error", [RuntimeError("bad\nbytes"), RecursionError("deep"), MemoryError(), KeyError("x")]
)
def test_any_error_of_a_reader_becomes_one_line(error):
    with pytest.raises(InputError) as raised, reading(Path("a.h5"), "not a store"):
        raise error
    assert str(raised.value).startswith("a.h5: not a store: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [InputError("a.h5: row 3"), UsageError("--split")])
def test_our_own_errors_keep_their_message(error):
    with pytest.raises(type(error)) as raised, reading("a.h5"):
        raise error
    assert raised.value is error


def test_a_probe_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "scores.npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "file/scores.npy"])
def test_a_place_that_cannot_be_written_is_an_error(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"folder|Not a directory"):
        check_writable(tmp_path / name)


def test_a_file_system_that_takes_no_files_is_an_error():
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(Path("/proc/scores.npy"))
