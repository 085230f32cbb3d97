"""How long do whole evaluations of COCO's sizes take, and with how much memory?

    python -m benchmarks.evaluation                        # COCO 1K: 1,000 images, 5,000 captions
    python -m benchmarks.evaluation --images 1000 5000     # and 5K: on two cores some twenty minutes more

A model of the paper's BiGRU recipe with random weights encodes and scores a generated data set of that size, as
`chan evaluate` does. Each size runs in its own process, whose peak resident memory, libraries and pages of the
store included, is shown. Before the clock starts it evaluates the first images, so that what happens only once,
as the compilation of a kernel, takes no time. The limit is the product of regions and words alone, in the faster
operand order: a part of it is timed before all and after every block of scores, so that both see the same machine,
and extrapolated. The score's time includes the intervals', which is given too.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.generated import write_data
from benchmarks.recording import record
from benchmarks.timing import interleaved, synchronise
from chan.build import build_model
from chan.config import ModelConfig
from chan.data.splits import FeatureSplit, open_split
from chan.evaluation import evaluate as evaluation
from chan.evaluation.intervals import bootstrap
from chan.evaluation.recall import BlockScorer
from chan.model.chan import Chan
from chan.packing import Packed
from chan.text.tokenizers import CaptionTokenizer, VocabularyTokenizer
from data_tools.captions.vocabulary import Vocabulary

PART = 4096  # words and regions of the timed part of the product
REPEATS = 3  # of it, after a block
WARM_UP = 128  # images that are evaluated before: one batch
DIM = 2048  # of the features
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = {
    "images": "images",
    "captions": "captions",
    "encode_seconds": "encode s",
    "score_and_rank_seconds": "score s",
    "interval_seconds": "interval s",
    "product_seconds": "product s",
    "share_of_product": "share",
    "peak_gb": "peak GB",
    "matrix_gb": "matrix GB",
}


def measure(data: Path, images: int, device: torch.device, precision: str) -> dict[str, Any]:
    """Evaluate the split `test` of `data` and take the times."""
    opened = open_split(data, "test", None)
    reader = VocabularyTokenizer(Vocabulary.build(opened.split.captions, threshold=1))
    torch.manual_seed(0)
    model = build_model(ModelConfig(), opened.features.dim, reader, pretrained=False).to(device)
    warm_up(model, opened.first(WARM_UP), reader, device, precision)
    start = time.perf_counter()
    regions, words = evaluation.encode(model, opened, reader, device)
    synchronise()
    encoded = time.perf_counter()
    limit = Limit(regions, words, TYPES[precision])
    scorer = limit.beside(evaluation.embedding_blocks(model, regions, words, precision))
    found = evaluation.evaluate(opened.split, 1, scorer, seed=0)
    synchronise()
    end = time.perf_counter()
    scored = end - encoded - limit.spent
    bootstrap(found.ranking, seed=0)  # once more: how much of that time are the intervals, on the CPU?
    intervals = time.perf_counter() - end
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "images": images,
        "captions": len(words),
        "words": len(words.rows),
        "encode_seconds": round(encoded - start, 2),
        "score_and_rank_seconds": round(scored, 2),
        "interval_seconds": round(intervals, 3),
        "product_seconds": round(limit.seconds, 2),
        "share_of_product": round(scored / limit.seconds, 3),
        "peak_gb": round(peak / 1e9, 2),
        "gpu_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
        "matrix_gb": round(4e-9 * images * len(words), 2),
        "rsum": found.recall.rsum,
    }


def warm_up(
    model: Chan, few: FeatureSplit, reader: CaptionTokenizer, device: torch.device, precision: str
) -> None:
    """Evaluate a few images, and wait for the device."""
    blocks = evaluation.embedding_blocks(model, *evaluation.encode(model, few, reader, device), precision)
    evaluation.evaluate(few.split, 1, blocks, seed=0)
    synchronise()


class Limit:
    """The product of all regions with all words: a part of it is timed now and then, in `spent` seconds in all."""

    def __init__(self, regions: Packed, words: Packed, kind: torch.dtype) -> None:
        self.left, self.right = (side.rows[:PART].to(kind) for side in (regions, words))
        self.parts = len(regions.rows) * len(words.rows) / (len(self.left) * len(self.right))
        self.measured: list[dict[str, float]] = []
        self.spent = 0.0
        self.measure()

    def measure(self) -> None:
        """Time the part in both operand orders."""
        synchronise()
        start = time.perf_counter()
        works = {"regions": lambda: self.left @ self.right.T, "words": lambda: self.right @ self.left.T}
        self.measured.append(interleaved(works, REPEATS))
        self.spent += time.perf_counter() - start

    def beside(self, scorer: BlockScorer) -> BlockScorer:
        """The blocks of `scorer`, with a measurement after each."""

        def block(images: range, captions: torch.Tensor) -> torch.Tensor:
            scores = scorer(images, captions)
            self.measure()
            return scores

        return block

    @property
    def seconds(self) -> float:
        """Of the whole product, in the faster order."""
        means = (statistics.mean(one[order] for one in self.measured) for order in ("regions", "words"))
        return self.parts * min(means)


def as_text(rows: list[dict[str, Any]]) -> str:
    """The table for the console."""
    lines = ["".join(f"{title:>11}" for title in COLUMNS.values())]
    lines += ["".join(f"{row[name]:>11}" for name in COLUMNS) for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Generate the data, measure each size in its own process, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000], help="with five captions each")
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--precision", choices=list(TYPES), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        device = torch.device(options.device)
        with torch.inference_mode():
            print(json.dumps(measure(options.one, options.images[0], device, options.precision)))
        return
    rows = []
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            write_data(Path(folder), {"test": images}, options.regions, DIM)
            line = [sys.executable, "-m", "benchmarks.evaluation", "--one", folder, "--images", str(images)]
            line += ["--device", options.device, "--precision", options.precision]
            done = subprocess.run(line, stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(done.stdout))
    print(as_text(rows))
    about = {"precision": options.precision, "device": options.device, "regions": options.regions}
    for row in rows:
        section = f"evaluation {row['images']} {options.precision}"
        path = record(section, {**about, "result": row}, options.out)
    print(path)


if __name__ == "__main__":
    main()
