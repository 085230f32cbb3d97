"""How fast random batches are read from a feature store.

    python -m benchmarks.reading                                  # about a minute, 1.2 GB in a temporary folder
    python -m benchmarks.reading --images 20000 --seconds 20

Question answered: do random batches of 384 images (36 regions x 2048, float16) come at 80 % or more of what
`numpy.memmap` reaches on the same bytes, with 0, 2 and 4 loader processes, and does memory stay where it is?

Each reader fills the same buffer with the same batches in the same run, in turns, so that all see the same page
cache; the figure of a reader is the median over the turns. Memory is that of the process and its loaders together:
their proportional share of anonymous pages (Pss_Anon), so that pages of the cache that a memory map shows do not
count. Growth is that figure at the end less that at the beginning of the measured batches.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.recording import record
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

REGIONS, DIM = 36, 2048
TARGET = 0.8  # of the memory map's images a second


class MappedFeatures:
    """The same bytes through `numpy.memmap`, at the data set's place in the file."""

    def __init__(self, path: Path) -> None:
        with h5py.File(path) as file:
            offset, shape = file["features"].id.get_offset(), file["features"].shape
        self._rows = np.memmap(path, np.float16, "r", offset, shape)

    def gather(self, images: np.ndarray, out: np.ndarray) -> np.ndarray:
        """The regions of `images`, one image after the other."""
        for position, image in enumerate(images.tolist()):
            rows = self._rows[image * REGIONS : (image + 1) * REGIONS]
            out[position * REGIONS : (position + 1) * REGIONS] = rows
        return out


class Batches(Dataset):
    """Random batches, gathered where they are asked for.

    One number of each travels back: moving batches between processes costs all readers the same and is not
    what is compared.
    """

    def __init__(self, path: Path, reader: str, images: int, batch: int, number: int) -> None:
        self.path, self.reader, self.images, self.batch, self.number = path, reader, images, batch, number
        self._open: Any = None

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> float:
        if self._open is None:  # in the process that reads
            self._open = READERS[self.reader](self.path)
            self._buffer = np.empty((self.batch * REGIONS, DIM), np.float16)
        chosen = np.random.default_rng(index).integers(0, self.images, self.batch)
        return float(self._open.gather(chosen, self._buffer)[-1, -1])


READERS: dict[str, Callable[[Path], Any]] = {"store": FeatureStore, "memmap": MappedFeatures}


def write(path: Path, images: int) -> None:
    """A store of random features."""
    rng = np.random.default_rng(0)

    def blocks() -> Any:
        for first in range(0, images, 100):
            number = min(100, images - first)
            ids = [str(image) for image in range(first, first + number)]
            features = rng.standard_normal((number * REGIONS, DIM), dtype=np.float32).astype(np.float16)
            yield Block(ids, np.full(number, REGIONS), {"features": features})

    shape = StoreSchema(images, images * REGIONS, DIM, "<f2", (), False, 8)
    write_store(path, blocks(), shape, {"selection": "random"})


def measure(path: Path, reader: str, images: int, batch: int, workers: int, seconds: float) -> dict[str, float]:
    """Images a second of one reader, and the memory of all its processes."""
    batches = Batches(path, reader, images, batch, number=1_000_000)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=workers, shuffle=False))
    for _ in range(2 * max(workers, 1)):  # files opened, processes started
        next(loader)
    start, done, early, late = time.perf_counter(), 0, 0.0, 0.0
    while (passed := time.perf_counter() - start) < seconds:
        next(loader)
        done += 1
        early = early or own_memory()
        late = own_memory() if passed > 0.8 * seconds else late
    speed = done * batch / (time.perf_counter() - start)
    del loader
    return {"images_per_second": speed, "early_mb": early, "late_mb": late or early}


def own_memory() -> float:
    """MB that this process and its children hold themselves; what is mapped from files is not counted."""
    total = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss_Anon"))
    return total / 1000


def run(folder: Path, images: int, batch: int, workers: list[int], seconds: float, turns: int) -> dict[str, Any]:
    """All measurements, as plain data."""
    path = folder / "features.h5"
    write(path, images)
    results = []
    for number in workers:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in READERS}
        for turn in range(turns):
            for name in list(READERS)[:: 1 if turn % 2 else -1]:  # neither is always the first
                found[name].append(measure(path, name, images, batch, number, seconds))
        speed = {name: statistics.median(m["images_per_second"] for m in runs) for name, runs in found.items()}
        growth = max(run["late_mb"] - run["early_mb"] for run in found["store"])
        memory = max(run["late_mb"] for run in found["store"])
        results.append(
            {
                "workers": number,
                "store_images_per_second": round(speed["store"]),
                "memmap_images_per_second": round(speed["memmap"]),
                "share": round(speed["store"] / speed["memmap"], 3),
                "store_memory_mb": round(memory, 1),
                "store_growth_mb": round(growth, 1),
            }
        )
    return {
        "images": images,
        "batch": batch,
        "bytes": path.stat().st_size,
        "seconds": seconds,
        "turns": turns,
        "results": results,
    }


def as_text(summary: dict[str, Any]) -> str:
    """The results for the console."""
    lines = [
        f"{summary['images']} images, {summary['bytes'] / 1e9:.2f} GB, random batches of {summary['batch']}",
        f"{'loaders':>8}{'store':>16}{'memmap':>16}{'share':>8}{'memory':>12}{'growth':>10}",
    ]
    for row in summary["results"]:
        lines.append(
            f"{row['workers']:>8}{row['store_images_per_second']:>9} img/s"
            f"{row['memmap_images_per_second']:>10} img/s"
            f"{row['share']:>8.0%}{row['store_memory_mb']:>9.0f} MB{row['store_growth_mb']:>7.1f} MB"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the store is written; a temporary folder without it")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more loaders than cores, on purpose
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        summary = run(Path(folder), options.images, options.batch, options.workers, options.seconds, options.turns)
    print(as_text(summary))
    print(record("reading", summary, options.out))
    if any(row["share"] < TARGET for row in summary["results"]):
        print(f"below {TARGET:.0%} of the memory map")


if __name__ == "__main__":
    main()
