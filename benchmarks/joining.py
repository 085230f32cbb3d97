"""How much memory the parts of a large store and their joining take.

    python -m benchmarks.joining                                       # 3,000 and 6,000 images, 1.8 GB of disk
    python -m benchmarks.joining --images 120000                       # 36 GB of disk

Question answered: is a store of 120,000 images x 36 x 2048 float16 written as parts and joined within 4 GB, and
does the memory stay the same when there are twice as many images?

Each size runs in a process of its own. `peak_mb` is the largest resident size of that process (`ru_maxrss`),
`own_peak_mb` the part of it that is not mapped from files, sampled ten times a second.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recording import record
from data_tools.store.parts import Parts
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import Block

REGIONS, DIM = 36, 2048
LIMIT = 4e9  # bytes
IMAGE_BYTES = REGIONS * DIM * 2


def measure(folder: Path, images: int, part: int) -> dict[str, Any]:
    """Write the parts of so many images, join them, and look at the memory and at a few rows."""
    own = _Sampled()
    parts = Parts(folder / "features.h5", {"selection": "random"}, images, part)
    start = time.perf_counter()
    for number in range(parts.count):
        parts.write(number, block(parts.span(number)))
    written = time.perf_counter()
    after_writing = peak()
    parts.join()
    joined = time.perf_counter()
    with FeatureStore(parts.file) as store:
        for image in (0, images // 2, images - 1):
            np.testing.assert_array_equal(store.read(image), features(image))
        assert len(store) == images
    return {
        "images": images,
        "bytes": parts.file.stat().st_size,
        "parts": parts.count,
        "peak_mb": round(peak() / 1e6, 1),
        "peak_after_writing_mb": round(after_writing / 1e6, 1),
        "own_peak_mb": round(own.stop() / 1e6, 1),
        "write_seconds": round(written - start, 1),
        "join_seconds": round(joined - written, 1),
    }


def features(image: int) -> np.ndarray:
    """(36, 2048) float16 that depend on the image; made fast, since making them is not what is measured."""
    values = np.arange(REGIONS * DIM, dtype=np.uint32).reshape(REGIONS, DIM) * 7 + image
    return (values % 2039).astype(np.float16)


def block(span: range) -> Block:
    """The images of a part."""
    ids = [str(image) for image in span]
    regions = {"features": np.concatenate([features(image) for image in span])}
    return Block(ids, np.full(len(span), REGIONS), regions)


def peak() -> int:
    """Bytes of the largest resident size that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _Sampled:
    """The largest size of what the process holds itself, sampled in a thread."""

    def __init__(self) -> None:
        self._largest, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            text = Path("/proc/self/status").read_text()
            lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            self._largest = max(self._largest, int(lines["RssAnon"].split()[0]) * 1024)

    def stop(self) -> int:
        """End; the largest size in bytes."""
        self._ended.set()
        self._thread.join()
        return self._largest


def main() -> None:
    """Parse the options, measure each size in its own process, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[3000, 6000])
    parser.add_argument("--part", type=int, default=256, help="images of a part")
    parser.add_argument("--folder", type=Path, help="where the stores are written; a temporary folder without it")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.folder, options.images[0], options.part)))
        return
    results = []
    for images in options.images:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            needed, free = 2.1 * images * IMAGE_BYTES, shutil.disk_usage(folder).free
            if free < needed:
                raise SystemExit(
                    f"{images} images take {needed / 1e9:.0f} GB; the disk has {free / 1e9:.0f} GB left"
                )
            line = [
                sys.executable,
                "-m",
                "benchmarks.joining",
                "--one",
                "--folder",
                folder,
                "--part",
                str(options.part),
            ]
            done = subprocess.run([*line, "--images", str(images)], stdout=subprocess.PIPE, check=True)
        results.append(json.loads(done.stdout))
        print(", ".join(f"{name} {value}" for name, value in results[-1].items()), flush=True)
    print(record("joining", {"results": results}, options.out))
    if any(result["peak_mb"] * 1e6 > LIMIT for result in results):
        raise SystemExit(f"more than {LIMIT / 1e9:.0f} GB of memory")


if __name__ == "__main__":
    main()
