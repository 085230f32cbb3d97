"""Is decoding and resizing ever the bottleneck?

    python -m benchmarks.loading                        # JPEG files made for it, 640 x 480
    python -m benchmarks.loading --images FOLDER        # of a folder

Measures images per second of the loader alone by the number of its processes, for each way to resize to 600 x
1000, after checking that processes and a plain loop give the same arrays; and the same where PyTorch shares the
arrays, as its DataLoader does with tensors, instead of the loader's ring. For comparison, what the machine can do:
OpenCV's decoding on one core, and copies of a resized image into used memory and into new memory.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.recording import record
from data_tools.images.decoding import decode_bgr
from extract.detector.resizing import METHODS, Resizing
from extract.run.loading import AHEAD, load
from extract.run.sources import Sources, find_sources

MEAN = (102.9801, 115.9465, 122.7717)
WARM = 4  # images that do not count, since processes start meanwhile, besides those that are made ahead
Loader = Callable[[Sources, list[int], Resizing, int], Iterator[Any]]


def make_pictures(folder: Path, count: int) -> None:
    """JPEG files of some 100 kB, as photographs are: gradients, edges and grain, quality 90."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:480, 0:640]
    for number in range(count):
        smooth = np.stack([x * (number + 1) / 5 % 256, (y / 2 + 9 * number) % 256, (x + y) / 5], axis=2)
        picture = cv2.GaussianBlur(smooth.astype(np.float32), (0, 0), 3) + rng.normal(0, 10, smooth.shape)
        path = folder / f"{number:03d}.jpg"
        cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])


def rate(work: Callable[[], Any], repeats: int) -> float:
    """Calls of `work` per second, by the median of some."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds)


def limits(sources: Sources) -> dict[str, float]:
    """What one core can do per second."""
    encoded = [
        np.frombuffer((sources.folder / image.file).read_bytes(), np.uint8) for image in sources.images[:32]
    ]
    turns = itertools.cycle(encoded)
    one, other = np.ones((3, 600, 800), np.float32), np.ones((3, 600, 800), np.float32)
    return {
        "cv2.imdecode": rate(lambda: cv2.imdecode(next(turns), cv2.IMREAD_COLOR), 2 * len(encoded)),
        "copies into used memory": rate(lambda: np.copyto(other, one), 50),
        "copies into new memory": rate(one.copy, 50),
    }


def check(sources: Sources, resizing: Resizing) -> None:
    """Stop where processes do not give what a plain loop gives."""
    order = range(min(len(sources.images), 8))
    for item in load(sources.folder, sources.images, order, resizing, workers=2):
        pixels, geometry = resizing(decode_bgr(sources.folder / sources.images[item.position].file))
        if item.pixels is None or item.geometry != geometry or not np.array_equal(item.pixels, pixels.numpy()):
            raise SystemExit(f"{resizing.method}: the loader's arrays differ from a plain loop's")


class Tensors(Dataset):
    """Resized images as tensors, which a DataLoader passes on in shared memory of its own (`/dev/shm`)."""

    def __init__(self, sources: Sources, order: list[int], resizing: Resizing) -> None:
        self.sources, self.order, self.resizing = sources, order, resizing

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Tensor:
        image = self.sources.images[self.order[index]]
        return self.resizing(decode_bgr(self.sources.folder / image.file))[0]


def by_pytorch(sources: Sources, order: list[int], resizing: Resizing, workers: int) -> Iterator[Tensor]:
    """The images through PyTorch's own sharing."""
    ahead = AHEAD if workers else None
    images = Tensors(sources, order, resizing)
    return iter(DataLoader(images, batch_size=None, num_workers=workers, prefetch_factor=ahead))


def by_ring(sources: Sources, order: list[int], resizing: Resizing, workers: int) -> Iterator[Any]:
    """The images as an extraction loads them."""
    return load(sources.folder, sources.images, order, resizing, workers)


def images_per_second(sources: Sources, resizing: Resizing, workers: int, count: int, loader: Loader) -> float:
    """Of a loader alone."""
    warm, count = WARM + AHEAD * workers, max(count, 8 * AHEAD * workers)
    order = list(itertools.islice(itertools.cycle(range(len(sources.images))), count + warm))
    items = loader(sources, order, resizing, workers)
    for _ in range(warm):
        next(items)
    start = time.perf_counter()
    rest = sum(1 for _ in items)
    return rest / (time.perf_counter() - start)


def measure(sources: Sources, workers: list[int], count: int, repeats: int) -> list[dict[str, Any]]:
    """One row per way to resize and number of processes; the repeats go in turns."""
    resizings = {method: Resizing(method, 600, 1000, MEAN) for method in METHODS}
    for resizing in resizings.values():
        check(sources, resizing)
    loaders: dict[str, Loader] = {"ring": by_ring, "pytorch": by_pytorch}
    keys = list(itertools.product(METHODS, workers))
    rates: dict[tuple[str, int, str], list[float]] = {(*key, name): [] for key in keys for name in loaders}
    for _ in range(repeats):
        for (method, number, name), measured in rates.items():
            measured.append(images_per_second(sources, resizings[method], number, count, loaders[name]))
    return [
        {
            "resize": method,
            "workers": number,
            "images_per_second": round(statistics.median(rates[method, number, "ring"]), 1),
            "min": round(min(rates[method, number, "ring"]), 1),
            "max": round(max(rates[method, number, "ring"]), 1),
            "by_pytorch": round(statistics.median(rates[method, number, "pytorch"]), 1),
        }
        for method, number in keys
    ]


def main() -> None:
    """Measure, print a table and write the results."""
    cores = os.cpu_count() or 1
    doubling = itertools.takewhile(lambda n: n <= cores, (2**power for power in itertools.count()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs; by default some are made")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, *doubling])
    parser.add_argument("--count", type=int, default=96, help="images of a measurement, at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as made:
        if arguments.images is None:
            make_pictures(Path(made), 32)
        sources = find_sources(arguments.images or Path(made))
        machines = limits(sources)
        rows = measure(sources, arguments.workers, arguments.count, arguments.repeats)
    for name, value in machines.items():
        print(f"{name:24} {value:8.1f} per second on one core")
    for row in rows:
        print(
            f"{row['resize']:7} {row['workers']:3} processes  {row['images_per_second']:7.1f} images/s  "
            f"({row['min']} to {row['max']}); shared by PyTorch {row['by_pytorch']:7.1f}"
        )
    results = {
        "images": "of a folder" if arguments.images else "made, 640 x 480, quality 90",
        "repeats": arguments.repeats,
        "limits_per_second": {name: round(value, 1) for name, value in machines.items()},
        "loader": rows,
    }
    print(record("loading", results, arguments.out))


if __name__ == "__main__":
    main()
