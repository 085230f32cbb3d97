"""The other process of `probing`: opens each store of a list as its reader will, and says how that went."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

from data_tools.errors import InputError, UnavailableError
from data_tools.store.probing import identity, look_here
from data_tools.store.reading import FeatureStore

CPU_SECONDS = 5.0  # for one store: opening a million images takes one
CPU_SECONDS_PER_GB = 2.0
MEMORY = 4 << 30  # bytes, besides the size of the file


def main() -> None:
    """Read a JSON list of paths from the standard input; write one JSON line per store, up to the first error."""
    look_here()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    for path in map(Path, json.load(sys.stdin)):
        size = path.stat().st_size
        limit = MEMORY + size
        resource.setrlimit(
            resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
        )
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS + CPU_SECONDS_PER_GB * size / 1e9)  # its signal ends us
        try:
            known = _look(path)
        except InputError as error:
            answer = {"error": str(error), "unavailable": isinstance(error, UnavailableError)}
            print(json.dumps(answer), flush=True)
            break
        print(json.dumps({"known": known}), flush=True)
    os._exit(0)  # without HDF5's own end, which has nothing to write


def _look(path: Path) -> list[tuple[int, int, int, int]]:
    with FeatureStore(path) as store:
        for row in {0, len(store) - 1} if len(store) else set():
            store.block(range(row, row + 1))
        return [identity(path), *(identity(source) for source in store.sources)]
