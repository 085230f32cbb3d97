"""A few inputs for every reader; `make fuzz` tries thousands."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import seeds
from tests.fuzz.mutators.families import STRUCTURED
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
INPUTS = 40  # about one changed input for each target, besides the valid one


def test_every_reader_reads_its_valid_input_and_survives_some_damaged_ones(tmp_path):
    line = [sys.executable, "-m", "tests.fuzz", "--inputs", str(INPUTS), "--seed", "0", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    outcomes = json.loads((tmp_path / "results.json").read_text())["outcomes"]
    assert {o["target"] for o in outcomes if o["seed"] == -1} == {target.name for target in TARGETS}
    assert sum(o["verdict"] == "refused" for o in outcomes) > len(TARGETS) / 3


@pytest.mark.slow
def test_every_change_applies_to_a_valid_input(tmp_path):
    """A change that always raises would be passed over without a word."""
    unapplied = {change for family in STRUCTURED.values() for change in family}
    for make in (
        *(
            seeds.one_store,
            seeds.arrays,
            seeds.butd_tsv,
            seeds.archives,
            seeds.karpathy,
            seeds.table,
            seeds.weights,
        ),
        *(seeds.pictures, seeds.chan_config, seeds.overrides),
    ):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder)
        for path in sorted(folder.rglob("*.*")):
            for change in STRUCTURED[path.suffix]:
                content = path.read_bytes()
                for number in range(30 if change in unapplied else 0):
                    with suppress(Exception):
                        change(path, Random(number))
                        if path.read_bytes() != content:
                            unapplied.discard(change)
                    path.write_bytes(content)
    assert not unapplied


def test_a_traceback_a_signal_and_code_that_ran_are_failures(tmp_path):
    """The watching process notices what it is there for: readers that fail in each way."""
    program = """
import os, pathlib, sys
from tests.fuzz import watching
from tests.fuzz.runner import run
from tests.fuzz.targets import Target
watching.CPU_SECONDS = 4
def crash(): os.kill(os.getpid(), 11)
def obey(): os.mkdir(watching.TRACE)
def spin():
    while True: pass
def fill(): len(bytearray(1500 << 20))
def leak(): pathlib.Path("out/x").write_text(pathlib.Path(watching.OUTSIDE).read_text())
def call(): os.system("true")
readers = (lambda: 1 / 0, crash, obey, spin, fill, leak, call, lambda: os._exit(3), lambda: None)
make = lambda folder: (folder / "a.txt").write_text("a b")
trials = [(Target(str(n), make, reader), -1) for n, reader in enumerate(readers)]
found = {outcome.target: outcome.verdict for outcome in run(trials, 2, None, None, lambda outcome: None)}
print(*(found[str(n)] for n in range(len(readers))), sep=",")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    expected = "traceback,signal,code ran,timeout,memory,leak,reached out,ended early,accepted"
    assert done.stdout.strip() == expected, done.stderr
