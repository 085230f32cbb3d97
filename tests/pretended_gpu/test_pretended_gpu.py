"""The tests of this folder, in processes of their own.

The first fake tensor makes PyTorch believe in GPUs for the rest of a process, whose autograd then starts threads
for them; processes that are forked from it later cannot compute gradients.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("module", ["instrument", "scoring", "training", "evaluation", "extraction"])
def test_in_a_process_of_its_own(module: str) -> None:
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / f"{module}.py")]
    done = subprocess.run(line, cwd=HERE.parents[1], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout
