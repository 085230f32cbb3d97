"""How fast is the GPU's kernel of hard assignment, beside one matrix product, PyTorch by tiles, and its peers?

    python -m benchmarks.kernel                                        # COCO 5K and a batch of 384 pairs
    python -m benchmarks.kernel --images 500 --captions 2500           # a try

The limit is the product of all words with all regions, in pieces that fit. The peers are the packages
`late-interaction-kernels` and `flash-maxsim`, where they are installed. They add maxima up over words, which is
the pooling "sum"; ours is timed with it too. Every work is checked against the formulas in float64 on a few images
and captions before any is timed; one that fails, or does not fit into memory, is listed with the reason.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.recording import record
from benchmarks.scorers import WORKS, Work, failure, reason, wrong_gradient
from benchmarks.scoring import TYPES, Problem, make_problem
from benchmarks.timing import interleaved, synchronise
from chan.packing import Packed
from chan.scoring import hard_assignment
from chan.training.losses import contrastive

PIECE = 4096  # captions at a time, where a work does not cut the problem itself
FEW = 48  # images and captions of the checks


def products(problem: Problem, kind: torch.dtype) -> Callable[[], None]:
    """All products of words with regions, written into memory that the pieces share: the limit."""
    regions, words = problem.images.rows.to(kind), problem.captions.rows.to(kind)
    step = min(len(words), 2 * PIECE)
    memory = regions.new_empty(step, len(regions))

    def multiply() -> None:
        for first in range(0, len(words), step):
            piece = words[first : first + step]
            torch.mm(piece, regions.T, out=memory[: len(piece)])

    return multiply


def maxima(problem: Problem, kind: torch.dtype) -> Callable[[], None]:
    """The maxima without pooling, and without the change of type."""
    regions = problem.images.with_rows(problem.images.rows.to(kind))
    words = problem.captions.rows.to(kind)

    def search() -> None:
        for piece in words.split(16 * PIECE):
            hard_assignment.max_similarities(piece, regions)

    return search


def evaluation(problem: Problem, few: Problem, precision: str, repeats: int) -> dict[str, Any]:
    """Scores of all pairs without a gradient."""
    kind = TYPES[precision]
    failures = {name: failure(work, few, kind) for name, work in WORKS.items()}
    works: dict[str, Callable[[], Any]] = {
        "one matrix product": products(problem, kind),
        "kernel, maxima alone": maxima(problem, kind),
    }
    for name, work in WORKS.items():
        if failures[name] is None:
            works[name] = partial(work.scores, problem, kind)
    return _measured(works, failures, repeats) | {"precision": precision, "flop": _flop(problem)}


def training(problem: Problem, few: Problem, precision: str, repeats: int) -> dict[str, Any]:
    """Scores and gradients of a batch, of the recipe's loss and of the sum of all scores."""
    kind = TYPES[precision]
    failures = {name: wrong_gradient(work, few, kind) for name, work in WORKS.items()}
    others = ~torch.eye(len(problem.images), dtype=torch.bool, device=problem.images.rows.device)
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "hardest": lambda scores: contrastive(scores, others, 0.05, hardest=True),
        "all": torch.sum,
    }

    def step(work: Work, loss: Callable[[Tensor], Tensor]) -> None:
        sides = (problem.images, problem.captions)
        images, captions = (side.with_rows(side.rows.detach().requires_grad_()) for side in sides)
        loss(work.scores(Problem(images, captions), kind)).backward()

    works: dict[str, Callable[[], Any]] = {"one matrix product": products(problem, kind)}
    for name, work in WORKS.items():
        for of, loss in losses.items():
            if failures[name] is None:
                works[f"{name}, {of}"] = partial(step, work, loss)
    return _measured(works, failures, repeats) | {"precision": precision, "flop": _flop(problem)}


def tiles(problem: Problem, precision: str, repeats: int) -> dict[str, Any]:
    """The kernel with other tiles than the device's own, on as many words as fill the device."""
    from chan.scoring.hard_assignment_triton import (
        MIDDLE,
        MIDDLE_SINGLE,
        SINGLE,
        WIDE,
        WIDE_SINGLE,
        ProgramTile,
        best_products,
    )

    kind = TYPES[precision]
    regions = problem.images.with_rows(problem.images.rows.to(kind))
    words = problem.captions.rows[: 4 * PIECE].to(kind)
    half = (WIDE, WIDE._replace(stages=4), MIDDLE, MIDDLE._replace(stages=4), ProgramTile(256, 32, 64, 8, 3))
    single = (WIDE_SINGLE, WIDE_SINGLE._replace(stages=2), MIDDLE_SINGLE, SINGLE, ProgramTile(128, 16, 16, 8, 2))
    works: dict[str, Callable[[], Any]] = {}
    failures: dict[str, str | None] = {}
    for tile in single if kind == torch.float32 else half:
        for what, winner in (
            ("", None),
            (", winners", words.new_empty(len(words), len(regions), dtype=torch.int32)),
        ):
            name = "x".join(map(str, tile[:3])) + f" {tile.warps} warps {tile.stages} stages {tile.products}{what}"
            work = lambda tile=tile, winner=winner: best_products(words, regions, winner, tile)  # noqa: E731
            try:
                work()
                failures[name], works[name] = None, work
            except Exception as error:
                failures[name] = reason(error)
    flop = 2 * len(words) * len(regions.rows) * words.shape[1]
    return _measured(works, failures, repeats) | {"precision": precision, "flop": flop}


def _measured(
    works: dict[str, Callable[[], Any]], failures: dict[str, str | None], repeats: int
) -> dict[str, Any]:
    """Peak bytes beyond what lay there before, then seconds in turns."""
    peaks, fitting, reasons = {}, {}, {name: why for name, why in failures.items() if why}
    for name, work in works.items():
        try:
            peaks[name] = _peak(work)
            fitting[name] = work
        except Exception as error:
            reasons[name] = reason(error)
    return {"seconds": interleaved(fitting, repeats), "bytes": peaks, "failures": reasons, "repeats": repeats}


def _peak(work: Callable[[], Any]) -> int:
    if not torch.cuda.is_available():
        work()
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    synchronise()
    return torch.cuda.max_memory_allocated() - before


def _flop(problem: Problem) -> int:
    return 2 * len(problem.images.rows) * len(problem.captions.rows) * problem.images.rows.shape[1]


def as_text(document: dict[str, Any]) -> str:
    """The tables for the console."""
    lines = []
    for part in document["parts"]:
        lines.append(f"\n{part['title']}, {part['precision']}, median of {part['repeats']}")
        lines.append(f"  {'':42}{'seconds':>10}{'TFLOP/s':>10}{'peak GB':>10}")
        for name, seconds in part["seconds"].items():
            rate, peak = part["flop"] / seconds / 1e12, part["bytes"][name] / 1e9
            lines.append(f"  {name:42}{seconds:10.4f}{rate:10.1f}{peak:10.2f}")
        lines += [f"  {name:42}  {why}" for name, why in part["failures"].items()]
    return "\n".join(lines)


def _ragged(problem: Problem) -> Problem:
    """With the regions that augmentation leaves: about four in five of an image's."""
    random = torch.Generator().manual_seed(1)
    sides = problem.images, problem.captions
    kept = torch.rand(len(sides[0].rows), generator=random) < 0.8
    kept[sides[0].offsets[:-1]] = True
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), kept.cumsum(0)])[sides[0].offsets]
    return Problem(Packed(sides[0].rows[kept.to(sides[0].rows.device)], offsets), sides[1])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25000)
    parser.add_argument("--pairs", type=int, default=384, help="of a training batch")
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precisions", nargs="+", choices=list(TYPES), default=["bf16", "fp32"])
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.kernel needs a CUDA device, and there is none here", file=sys.stderr)
        sys.exit(2)
    device = torch.device("cuda", torch.cuda.current_device())
    if not hard_assignment.has_kernel(torch.empty(1, device=device)):
        print("benchmarks.kernel: the kernel cannot be started here; the warning says why", file=sys.stderr)
        sys.exit(2)
    whole = make_problem(options, device)
    pairs = argparse.Namespace(**{**vars(options), "images": options.pairs, "captions": options.pairs})
    batch = _ragged(make_problem(pairs, device))
    parts = []
    for precision in options.precisions:
        with torch.inference_mode():
            title = f"{options.images} images x {options.captions} captions"
            few = whole.first(FEW)
            parts.append({"title": title, **evaluation(whole, few, precision, options.repeats)})
            parts.append({"title": "tiles of the kernel", **tiles(whole, precision, options.repeats)})
        title = f"{options.pairs} pairs, forward and backward"
        parts.append({"title": title, **training(batch, batch.first(FEW), precision, options.repeats)})
    names = ("images", "captions", "pairs", "regions", "dim")
    document = {"sizes": {name: getattr(options, name) for name in names}, "parts": parts}
    print(as_text(document))
    print(f"\n{record('kernel', document, options.out)}")


if __name__ == "__main__":
    main()
