"""The order of `make gpu-check`: it keeps its clock, goes on after failures, and writes after every step."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import NEEDS, ROOT, STEPS, Step, run
from benchmarks.recording import record

SLEEP = "timeit -n 1 -r 1 __import__('subprocess').run(['sleep','60'])"  # in a process of its own


def steps_of(*lines: tuple[str, float]) -> list[Step]:
    return [Step(f"step {n}", line, "absent", seconds) for n, (line, seconds) in enumerate(lines)]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The outcomes in the results file after each step."""
    found: list[list[str]] = []

    def noted(section: str, document: dict[str, Any], path: Path) -> Path:
        record(section, document, path)
        found.append([row["outcome"] for row in json.loads(path.read_text())[section]["steps"]])
        return path

    monkeypatch.setattr(gpu_check, "record", noted)
    monkeypatch.setattr(gpu_check, "GRACE", 0.5)
    monkeypatch.setattr(gpu_check, "LEAST", 0.1)
    return found


def is_gone(group: int) -> bool:
    """Whether a group of processes has ended, of which killed ones may stay until something waits for them."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_others(
    tmp_path: Path, written: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = []

    class Noted(subprocess.Popen):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            groups.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    steps = steps_of(("absent {work}", 30), (SLEEP, 2), ("platform", 30))
    steps.append(Step("step 3", "platform", "platform", 30, ("cuda", "pytest")))
    start = time.monotonic()
    values = {"out": str(tmp_path / "found.json"), "work": str(tmp_path)}
    rows = run(steps, values, {"cuda"}, quick=False)
    assert time.monotonic() - start < 20
    expected = ["failed with exit code 1", "ran out of time", "passed", f"left out: needs {NEEDS['cuda']}"]
    assert [row["outcome"] for row in rows] == expected
    assert written == [expected[:count] for count in (1, 2, 3, 4)]
    assert "absent" in rows[0]["output"][-1]
    assert 1 < rows[1]["seconds"] < 10
    assert not [group for group in groups if not is_gone(group)]


def test_the_clock_ends_all(tmp_path: Path, written: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "LIMIT", 2.0)
    monkeypatch.setattr(gpu_check, "LEAST", 1.0)
    rows = run(steps_of((SLEEP, 60), ("platform", 60)), {"out": str(tmp_path / "found.json")}, set(), quick=False)
    assert [row["outcome"] for row in rows] == ["ran out of time", "left out: no time left"]
    assert rows[0]["limit"] == pytest.approx(2, abs=0.1)


def test_the_limits_leave_time_for_the_demonstration() -> None:
    assert sum(step.seconds for step in STEPS[:-1]) < gpu_check.LIMIT - 100 < 500
    assert {need for step in STEPS for need in step.needs} <= set(NEEDS)


def test_all_tests_for_a_gpu_are_run() -> None:
    line = ["git", "grep", "--name-only", "-e", "mark.gpu", "--", "tests/**/test_*.py"]
    marked = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {"tests/chan/training/test_step_gpu.py", "tests/extract/run/test_overlap.py"} <= set(marked)
    assert set(marked) <= set(gpu_check.gpu_tests())


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, reason in (("13.0", "there is none here"), (None, "without CUDA")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(SystemExit) as stop:
            gpu_check.main()
        assert stop.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert reason in line


@pytest.mark.slow
def test_the_whole_order_at_tiny_sizes(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    line = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--quick", "--out", str(out)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 1  # the kernel has no GPU
    found = json.loads(out.read_text())
    outcomes = {row["step"]: row["outcome"] for row in found["gpu check"]["steps"]}
    assert outcomes.pop("kernel") == f"left out: needs {NEEDS['cuda']}"
    assert set(outcomes.values()) == {"passed"}
    assert {"convolutions", "extraction", "first calls fp32 quick", "evaluation 8 fp32"} < set(found)
    assert found["demo untrained quick"]["extraction"]["images"] == 40
