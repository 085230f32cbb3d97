"""What libraries find in the environment, set before any of them is imported. What the user has set is kept."""

import os
import pwd
import tempfile

SPINS = 1000


def prepare_environment() -> None:
    """Set what the project's programs need.

    On Linux PyTorch then takes tensors of megabytes in huge pages: a training step on a CPU spends half its time
    on the page faults of small ones (docs/performance.md). PyTorch reads the variable with its first tensor.

    Idle threads of OpenMP's GNU runtime, which PyTorch's wheels bring, wait in a loop before they sleep. Its
    default of 300,000 rounds slows processes on the same cores tenfold, as each spins in the time of the others;
    with `SPINS` others slow a process in proportion; alone it is up to 15 % slower (docs/performance.md).

    NumPy has threads of its own, which wait in the same way; its products here are small: one thread does them.

    In a container a user may have neither a HOME nor an entry among the users; libraries that look for the user's
    folder would raise errors when they are imported.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "HOME" not in os.environ:
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            os.environ["HOME"] = tempfile.gettempdir()
