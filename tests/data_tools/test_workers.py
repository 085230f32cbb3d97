"""Workers that have no room, or die: a note, or one line."""

import os
import shutil
import subprocess
import sys
import textwrap
from collections import namedtuple

import pytest

from data_tools import workers
from data_tools.workers import fitting_workers, worker_death

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("free", "wanted", "item", "expected"),
    [(64, 4, 90, 0), (64, 4, 5, 4), (64, 4, 6, 3), (64, 0, 90, 0), (10_000, 8, 90, 8), (0, 2, 1, 0)],
)
def test_only_workers_that_have_shared_memory_are_used(monkeypatch, capsys, free, wanted, item, expected):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free * 10**6))
    monkeypatch.setattr(workers, "usable_cores", lambda: 16)
    workers._note.cache_clear()
    assert fitting_workers(wanted, item * 10**6) == expected
    said = capsys.readouterr().err
    assert (f"using {expected}" in said) == (expected < wanted)
    assert said.count("\n") == (expected < wanted)


def test_no_more_workers_than_cores_and_one_note_of_it(monkeypatch, capsys):
    monkeypatch.setattr(workers, "usable_cores", lambda: 3)
    workers._note.cache_clear()
    assert [fitting_workers(8, 1), fitting_workers(8, 1), fitting_workers(3, 1)] == [3, 3, 3]
    assert capsys.readouterr().err == "note: 8 workers on 3 cores; using 3\n"


def test_a_machine_without_shared_memory_files_takes_all(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "usable_cores", lambda: 16)
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path / "none")
    assert fitting_workers(4, 1 << 40) == 4


def test_other_errors_are_no_deaths():
    assert worker_death(RuntimeError("expected a tensor")) == ""
    assert worker_death(ValueError("DataLoader worker")) == ""


@pytest.mark.parametrize("signal", [9, 11])
@pytest.mark.parametrize("where", ["waiting for a batch", "computing"])
def test_a_worker_that_is_killed_is_one_line_wherever_the_main_process_is(signal, where):
    program = f"""
        import os, sys, time
        from torch.utils.data import DataLoader
        from data_tools.console import run

        class Items:
            def __len__(self):
                return 100

            def __getitem__(self, index):
                if index == 3:
                    os.kill(os.getpid(), {signal})
                return index

        def work():
            for item in DataLoader(Items(), batch_size=None, num_workers=2):
                if {where!r} == "computing":
                    for _ in range(200):
                        time.sleep(0.01)

        run(work)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    lines = [line for line in done.stderr.splitlines() if "error: a process that works" in line]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert "fewer workers" in lines[0]
