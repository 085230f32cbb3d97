"""Where does the time of a training step go, and does it wait for its data?

    python -m benchmarks.training_shares                                    # the four recipes at full size
    python -m benchmarks.training_shares --quick                            # a minute: small models, the same code
    python -m benchmarks.training_shares --recipes coco_bigru --precision bf16 --steps 200

Each recipe of `configs/chan` is trained for a few steps, by the code that `chan train` runs, on drawn features
(36 regions x 2048 per image) and captions of 8 to 20 words. They are read from each place that `data.cache` and
`--features` allow: the device's memory, a mapped feature store (float16), SCAN's `.npy` (float32). That all three
give the same batches is checked first. All files are in the page cache, so that no disk is measured.

The parts of a step are timed with the device synchronised between them, in other steps than those whose speed is
given (on a CPU, which works synchronously, in the same). `data` is the wait for the next batch while the device is
idle, its copy to the device included: an upper bound of what a step loses by it, which should be below 5 %. For
scale, the time of copying a batch's features once is given too.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.recording import record
from chan.build import build_schedule, build_step, build_tokenizer
from chan.config import Config, TextEncoderName, load_config
from chan.data.batches import Batch, TrainingPairs, epoch_order, training_batches
from chan.data.feature_cache import make_cache
from chan.data.splits import open_split
from chan.keys import with_value
from chan.packing import Packed
from chan.training.distributed import Ranks
from chan.training.losses import Criterion
from chan.training.step import TrainingStep
from data_tools.captions.vocabulary import SPECIAL, Vocabulary
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

RECIPES = {"coco_bigru": 11_353, "f30k_bigru": 8_481, "coco_bert": 30_522, "f30k_bert": 30_522}
"""The recipes and the sizes of their vocabularies."""
SOURCES = ("device", "mmap", "npy")
PARTS = ("data", "encoders", "scores, loss", "backward", "clip, optimiser")
TARGET = 0.05  # the largest share of data
REGIONS, FEATURES, CAPTIONS = 36, 2048, 5
QUICK: dict[str, Any] = {"recipes": ["coco_bigru", "coco_bert"], "pairs": 64, "dim": 256, "bert_layers": 2}
QUICK |= {"images": 200, "workers": 2, "warmup": 6, "steps": 16}  # more steps than the four batches that wait


class Watch:
    """Adds up the time between marks, with the device synchronised at each."""

    def __init__(self, device: torch.device, parts: bool) -> None:
        self.device, self.parts = device, parts
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = 0.0

    def start(self) -> None:
        """Start from zero."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = self.now()

    def now(self) -> float:
        """The time, in seconds, once the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def mark(self, part: str) -> None:
        """The time since the last mark was spent in this part."""
        if self.parts:
            now = self.now()
            self.seconds[part] += now - self._last
            self._last = now


class WatchedStep(TrainingStep):
    """A training step that tells a watch where it is."""

    watch: Watch

    def _embed(self, encoders: torch.nn.Module, batch: Batch, seed: int) -> tuple[Packed, Packed]:
        self.watch.mark("clip, optimiser")  # the old gradients are cleared
        found = super()._embed(encoders, batch, seed)
        self.watch.mark("encoders")
        return found

    def gradients(self, batch: Batch, criterion: Criterion, seed: int) -> Tensor:
        """As in `TrainingStep`."""

        def watched(scores: Tensor, negatives: Tensor) -> Tensor:
            loss = criterion(scores, negatives)
            self.watch.mark("scores, loss")
            return loss

        loss = super().gradients(batch, watched, seed)
        self.watch.mark("backward")
        return loss

    def __call__(self, batch: Batch, criterion: Criterion, seed: int) -> Tensor:
        """As in `TrainingStep`."""
        self.watch.mark("data")
        loss = super().__call__(batch, criterion, seed)
        self.watch.mark("clip, optimiser")
        return loss


def write_data(folder: Path, images: int) -> dict[str, Path]:
    """Captions, and the same features as a store and as SCAN's array; where each source's features are."""
    random = np.random.default_rng(0)
    (folder / "precomp").mkdir(parents=True)
    (folder / "precomp" / "train_ids.txt").write_text("".join(f"{image}\n" for image in range(images)))
    lengths = random.integers(8, 21, CAPTIONS * images)
    captions = (" ".join(f"w{word}" for word in random.integers(0, 8000, n)) + "\n" for n in lengths)
    (folder / "precomp" / "train_caps.txt").write_text("".join(captions))
    store, array = folder / "features.h5", folder / "train_ims.npy"
    shape = (images, REGIONS, FEATURES)
    mapped = np.lib.format.open_memmap(array, "w+", np.float32, shape)

    def blocks() -> Iterator[Block]:
        for first in range(0, images, 100):
            part = mapped[first : first + 100]
            part[:] = random.standard_normal(part.shape, dtype=np.float32).astype(np.float16)
            ids, counts = [str(first + n) for n in range(len(part))], np.full(len(part), REGIONS)
            yield Block(ids, counts, {"features": part.reshape(-1, FEATURES)})

    write_store(store, blocks(), StoreSchema(images, images * REGIONS, FEATURES, "<f2", (), False, 8), {})
    mapped.flush()
    return {"device": store, "mmap": store, "npy": array}


def write_bert(folder: Path, layers: int) -> None:
    """The architecture of BERT-base with so many layers, and a tokenizer that knows the drawn words."""
    from transformers import BertConfig, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{word}" for word in range(RECIPES["coco_bert"] - len(special)))]
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(vocab_size=len(words), num_hidden_layers=layers).save_pretrained(folder)


def recipe_config(recipe: str, folder: Path, options: argparse.Namespace) -> Config:
    """The recipe with the sizes of the options and this run's files."""
    changes = {
        "train.batch_size": options.pairs,
        "model.dim": options.dim,
        "train.precision": options.precision,
        "data.workers": options.workers,
        "model.text.bert": folder / "bert",
        "data.vocab": folder / f"{recipe}.json",
    }
    config = load_config(recipe, [f"{key}={value}" for key, value in changes.items() if value is not None])
    if config.model.text.encoder is TextEncoderName.bigru:
        words = [*SPECIAL, *(f"w{word}" for word in range(RECIPES[recipe] - len(SPECIAL)))]
        Vocabulary(words).save(folder / f"{recipe}.json")
    return config


class Training:
    """A recipe's model and the batches that it is trained with."""

    def __init__(self, recipe: str, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.device = folder, torch.device(options.device)
        self.config = with_value(recipe_config(recipe, folder, options), "model.image.dim", FEATURES)
        self.tokenizer = build_tokenizer(self.config, folder, [])
        built = build_step(self.config, self.tokenizer, self.device, Ranks(), pretrained=False)
        self.step = WatchedStep(**{f.name: getattr(built, f.name) for f in fields(built) if f.init})
        self.step.model.train()
        schedule = build_schedule(self.config)
        self.batch_size = schedule.batch_size
        self.criterion = schedule.criterion(self.config.loss.warmup_epochs or 0)  # hardest negatives

    def batches(self, source: str, features: Path, workers: int) -> Iterator[Batch]:
        """Batches of one epoch after another, without end."""
        split = open_split(self.folder, "train", features)
        cache = make_cache(split, "device" if source == "device" else "mmap", self.device)
        data, train = self.config.data, self.config.train
        starts = None if cache is None else cache.starts
        pairs = TrainingPairs(
            split, self.tokenizer, data.region_keep_prob, data.token_change_prob, train.seed, cache_starts=starts
        )
        for epoch in count():
            steps = epoch_order(len(pairs), self.batch_size, train.seed, epoch)
            yield from training_batches(pairs, epoch, steps, workers, self.device, cache)

    def run(self, batches: Iterator[Batch], steps: int, watch: Watch) -> float:
        """Seconds of so many steps."""
        self.step.watch = watch
        watch.start()
        start = watch.now()
        for number, batch in enumerate(islice(batches, steps)):
            self.step(batch, self.criterion, number)
        return watch.now() - start

    def measured(self, source: str, features: Path, options: argparse.Namespace) -> dict[str, Any]:
        """Steps per second and the share of each part."""
        batches = self.batches(source, features, self.config.data.workers)
        parts = Watch(self.device, parts=True)
        self.run(batches, options.warmup, parts)
        seconds = self.run(batches, options.steps, parts)
        shares = {part: own / seconds for part, own in parts.seconds.items()}
        if self.device.type == "cuda":
            self.run(batches, options.warmup, Watch(self.device, parts=False))
            seconds = self.run(batches, options.steps, Watch(self.device, parts=False))
        pairs = self.batch_size
        speeds = {"steps_per_second": options.steps / seconds, "pairs_per_second": options.steps * pairs / seconds}
        return {"source": source, **speeds, "shares": shares}


def check(training: Training, sources: dict[str, Path]) -> Batch:
    """End the program unless all sources give the same batch; returns it."""
    found = [next(training.batches(source, features, 0)) for source, features in sources.items()]
    for source, batch in zip(sources, found, strict=True):
        pairs = (
            (batch.images.rows.float(), found[0].images.rows.float()),
            (batch.captions.rows, found[0].captions.rows),
        )
        if not all(torch.equal(own, first) for own, first in pairs):
            raise SystemExit(f"error: the first batches of {source} and {next(iter(sources))} differ")
    return found[0]


def copy_seconds(batch: Batch) -> float:
    """Median seconds of one copy of a batch's features, as a mapped store has them, in the machine's memory."""
    source = batch.images.rows.cpu().numpy()
    target, taken = np.empty_like(source), []
    for _ in range(7):
        start = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All recipes with all sources; prints each when it is done."""
    every = write_data(folder, options.images)
    sources = {source: every[source] for source in options.sources}
    write_bert(folder / "bert", options.bert_layers)
    print(f"{'':24}{'steps/s':>9}{'pairs/s':>9}" + "".join(f"{part:>17}" for part in PARTS))
    results = []
    for recipe in options.recipes:
        training = Training(recipe, folder, options)
        copy = copy_seconds(check(training, sources))
        for source, features in sources.items():
            row = {"recipe": recipe, **training.measured(source, features, options), "copy_seconds": copy}
            speeds = f"{row['steps_per_second']:>9.3f}{row['pairs_per_second']:>9.1f}"
            cells = "".join(f"{row['shares'][part]:>17.1%}" for part in PARTS)
            print(f"{recipe:12}{source:12}{speeds}{cells}", flush=True)
            results.append(row)
    return results


def main() -> None:
    """Run from the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, few images; other options go first")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--pairs", type=int, help="of a step, instead of the recipe's")
    parser.add_argument("--dim", type=int, help="of the joint space, instead of the recipe's")
    parser.add_argument("--bert-layers", type=int, default=12, help="of BERT, whose weights are random")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, help="loader processes, instead of the recipe's")
    parser.add_argument("--steps", type=int, default=100 if cuda else 2, help="of each measurement")
    parser.add_argument("--warmup", type=int, default=10 if cuda else 1, help="steps before each measurement")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--folder", type=Path, help="where the data are written; a temporary folder without it")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # the recipes' four, on any machine
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder) / "data", options)
    worst = max(row["shares"]["data"] for row in results)
    print(f"data take {worst:.1%} of a step at most; {TARGET:.0%} is the most they should")
    sizes = {key: value for key, value in vars(options).items() if key not in ("folder", "out")}
    name = f"training shares {options.precision}{' quick' if options.quick else ''}"
    print(record(name, {"sizes": sizes, "results": results}, options.out))


if __name__ == "__main__":
    main()
