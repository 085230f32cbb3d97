"""Is decoding and resizing ever the bottleneck?

    python -m benchmarks.loading                        # JPEG files made for it, 640 x 480
    python -m benchmarks.loading --images FOLDER        # of a folder

Measures images a second of the loader alone by the number of its processes, for each way to resize to 600 x 1000,
after checking that processes and a plain loop give the same arrays. Beside them what the machine can do: OpenCV's
decoding on one core, and copies of a resized image into memory that is in use already and into new memory.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.recording import record
from data_tools.images.decoding import decode_bgr
from extract.detector.resizing import METHODS, Resizing
from extract.run.loading import AHEAD, load
from extract.run.sources import Sources, find_sources

MEAN = (102.9801, 115.9465, 122.7717)
WARM = 4  # images that do not count, for processes start meanwhile, beside those that are made ahead


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
    """Calls of `work` a second, by the median of some."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds)


def limits(sources: Sources) -> dict[str, float]:
    """What one core can do, a second."""
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


def images_per_second(sources: Sources, resizing: Resizing, workers: int, count: int) -> float:
    """Of the loader alone."""
    warm, count = WARM + AHEAD * workers, max(count, 8 * AHEAD * workers)
    order = list(itertools.islice(itertools.cycle(range(len(sources.images))), count + warm))
    items = load(sources.folder, sources.images, order, resizing, workers)
    for _ in range(warm):
        next(items)
    start = time.perf_counter()
    rest = sum(1 for _ in items)
    return rest / (time.perf_counter() - start)


def measure(sources: Sources, workers: list[int], count: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each way to resize and number of processes; the repeats go in turns."""
    resizings = {method: Resizing(method, 600, 1000, MEAN) for method in METHODS}
    for resizing in resizings.values():
        check(sources, resizing)
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in itertools.product(METHODS, workers)}
    for _ in range(repeats):
        for (method, number), measured in rates.items():
            measured.append(images_per_second(sources, resizings[method], number, count))
    return [
        {
            "resize": method,
            "workers": number,
            "images_per_second": round(statistics.median(measured), 1),
            "least": round(min(measured), 1),
            "most": round(max(measured), 1),
        }
        for (method, number), measured in rates.items()
    ]


def main() -> None:
    """Measure, print a table and write the results."""
    cores = os.cpu_count() or 1
    doubling = itertools.takewhile(lambda n: n <= 2 * cores, (2**power for power in itertools.count()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs; by default some are made")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, *doubling])
    parser.add_argument("--count", type=int, default=96, help="images of a measurement, at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than cores, on purpose

    with tempfile.TemporaryDirectory() as made:
        if arguments.images is None:
            make_pictures(Path(made), 32)
        sources = find_sources(arguments.images or Path(made))
        machines = limits(sources)
        rows = measure(sources, arguments.workers, arguments.count, arguments.repeats)
    for name, value in machines.items():
        print(f"{name:24} {value:8.1f} a second on one core")
    for row in rows:
        print(
            f"{row['resize']:7} {row['workers']:3} processes  {row['images_per_second']:7.1f} images/s  "
            f"({row['least']} to {row['most']})"
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
