"""Reading and writing files: errors of libraries as one line, outputs that are probed before work begins."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_tools.errors import InputError, UsageError, reading
from data_tools.files import check_space, check_writable, claimed, replace_file, replacing, reserve


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


def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A disk of a few megabytes."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("this user cannot mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", "2m")


def test_a_file_that_does_not_fit_is_one_line_and_leaves_the_old_one(small_disk: Path) -> None:
    replace_file(small_disk / "a", b"old")
    with pytest.raises(InputError, match="a: cannot be written: no space left on the disk"):
        replace_file(small_disk / "a", b"x" * 4_000_000)
    assert (small_disk / "a").read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["a"]


def test_a_library_that_fails_on_a_full_disk_is_the_same_line(small_disk: Path) -> None:
    with (
        pytest.raises(InputError, match="w: cannot be written: no space left on the disk"),
        replacing(small_disk / "w") as temporary,
    ):
        torch.save(torch.zeros(1_000_000), temporary)
    with (
        pytest.raises(InputError, match="s: cannot be written: no space left on the disk"),
        replacing(small_disk / "s") as temporary,
    ):
        save_file({"a": torch.zeros(1_000_000)}, temporary)


def test_space_is_asked_for_before_anything_is_written(small_disk: Path) -> None:
    check_space(small_disk / "new" / "a", 1_000_000)
    with pytest.raises(InputError, match=r"needs 9\.0 MB, has 2\.1 MB"):
        check_space(small_disk / "new" / "a", 9_000_000)
    (small_disk / "a").touch()
    reserve(small_disk / "a", 1_000_000)
    assert (small_disk / "a").stat().st_blocks * 512 >= 1_000_000
    with pytest.raises(InputError, match="no space left"):
        reserve(small_disk / "a", 4_000_000)


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_kept(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".a.{host}.{dead.pid}.tmp", f".a.{host}.{os.getpid()}.tmp", f".a.other.{dead.pid}.tmp", ".a.tmp"]
    for name in names:
        (tmp_path / name).touch()
    replace_file(tmp_path / "b", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "b"])


CLAIM = """
import sys, time; from pathlib import Path; from data_tools.files import claimed
from data_tools.errors import InputError
try:
    with claimed(Path('place'), Path(sys.argv[1]), shared=len(sys.argv) > 2):
        print("mine", flush=True); time.sleep(60)
except InputError as error:
    print(error, flush=True)
"""


def claim(lock: Path, *shared: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CLAIM, lock, *shared], stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_claim_is_for_one_process_until_it_ends_even_by_a_kill(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    first = claim(lock)
    try:
        assert first_line(first) == "mine"
        second = claim(lock)
        said = first_line(second)
        assert f"process {first.pid} on {socket.gethostname()} is working here" in said
        assert second.wait() == 0
    finally:
        first.kill()
        first.wait()
    with claimed(lock.parent, lock):
        pass
    assert list(lock.parent.iterdir()) == []


def test_a_shared_claim_is_for_several_and_not_beside_a_whole_one(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    running = [claim(lock, "shared"), claim(lock, "shared")]
    try:
        assert [first_line(process) for process in running] == ["mine", "mine"]
        with pytest.raises(InputError, match="is working here"), claimed(lock.parent, lock):
            pass
        with claimed(lock.parent, lock, shared=True):
            pass  # its end takes nothing from the others
        with pytest.raises(InputError, match="is working here"), claimed(lock.parent, lock):
            pass
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_claim_that_came_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with claimed(tmp_path, tmp_path / "run" / ".lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_user_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match="place: cannot be written"), claimed(Path("place"), tmp_path / ".lock"):
        pass


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_has_the_mode_of_the_umask_whatever_wrote_it(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "weights.safetensors") as temporary:
            temporary.write_bytes(b"weights")
            temporary.chmod(0o600)
        assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == mode
        replace_file(tmp_path / "weights.safetensors", b"others")
        assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == mode
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
