"""What libraries find in the environment, set before any of them is imported. What the user has set is kept."""

import os
import pwd
import tempfile


def prepare_environment() -> None:
    """Set what the project's programs need.

    On Linux PyTorch then takes tensors of megabytes in huge pages: a training step on a CPU spends half its time
    on the page faults of small ones (docs/performance.md). PyTorch reads the variable with its first tensor.

    In a container a user may have neither a HOME nor an entry among the users; libraries that look for the user's
    folder would raise errors when they are imported.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "HOME" not in os.environ:
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            os.environ["HOME"] = tempfile.gettempdir()
