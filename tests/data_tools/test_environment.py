"""What the environment of a program holds after the project's packages were imported."""

import os
import subprocess
import sys

import pytest

SHOW = "import chan, os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000 None"),
        ({"GOMP_SPINCOUNT": "77"}, "77 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_idle_threads_soon_sleep_unless_the_user_decides(given: dict[str, str], expected: str) -> None:
    kept = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=kept | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
