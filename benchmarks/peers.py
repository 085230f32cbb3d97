"""How fast is hard assignment on a CPU, beside the packages that compute it for late interaction?

    pip install --no-deps late-interaction-kernels flash-maxsim
    python -m benchmarks.peers

Late interaction's MaxSim is hard assignment with the pooling "sum". Both packages are made for GPUs (where
`benchmarks.kernel` compares them): on a CPU `late-interaction-kernels` takes PyTorch's operations, and of
`flash-maxsim` the plain version works that its kernels are tested with. All see the same embeddings and run in
turns in one process, once they have been found to equal the formulas in float64.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.published import padded, published_scores
from benchmarks.recording import record
from benchmarks.scorers import Work, by_tiles, failure, wrong_gradient
from benchmarks.scoring import Problem, add_sizes, make_problem
from benchmarks.timing import interleaved

FEW = 48  # images and captions of the checks


def published(problem: Problem, kind: torch.dtype) -> Tensor:
    """By the published formulas."""
    return published_scores(*_padded(problem, kind), pooling="sum")


def late_interaction(problem: Problem, kind: torch.dtype) -> Tensor:
    """By the package late-interaction-kernels, on padded rows with masks."""
    from late_interaction_kernels import MaxSimScorer

    (regions, is_region), (words, is_word) = _padded(problem, kind)
    return MaxSimScorer(normalize=False)(words, regions, is_word, is_region).T


def flash_maxsim(problem: Problem, kind: torch.dtype) -> Tensor:
    """By the package flash-maxsim, one caption after the other; padded words are rows of zeros and add nothing."""
    from flash_maxsim import maxsim_naive_batched

    (regions, _), (words, _) = _padded(problem, kind)
    return maxsim_naive_batched(words, regions, doc_lengths=problem.images.lengths).T


WORKS = {
    "published formulas": Work(published, "sum"),
    "late-interaction-kernels": Work(late_interaction, "sum"),
    "flash-maxsim": Work(flash_maxsim, "sum"),
    "here": Work(by_tiles("sum"), "sum"),
}


def _padded(problem: Problem, kind: torch.dtype) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    (regions, is_region), (words, is_word) = padded(problem.images), padded(problem.captions)
    return (regions.to(kind), is_region), (words.to(kind), is_word)


def forward_times(problem: Problem, few: Problem, repeats: int) -> dict[str, Any]:
    """Scores of all pairs in float32, beside the matrix product in both operand orders."""
    kind = torch.float32
    failures = {name: failure(work, few, kind) for name, work in WORKS.items()}
    regions, words = problem.images.rows, problem.captions.rows
    works: dict[str, Callable[[], Any]] = {
        "regions x words": lambda: regions @ words.T,
        "words x regions": lambda: words @ regions.T,
    }
    works |= {name: partial(work.scores, problem, kind) for name, work in _right(failures)}
    return {"seconds": interleaved(works, repeats), "failures": failures, "repeats": repeats}


def backward_times(problem: Problem, few: Problem, repeats: int) -> dict[str, Any]:
    """Scores of all pairs in float32 and the gradient of their sum."""
    kind = torch.float32
    failures = {name: wrong_gradient(work, few, kind) for name, work in WORKS.items()}

    def step(work: Work) -> None:
        sides = (problem.images, problem.captions)
        images, captions = (side.with_rows(side.rows.detach().requires_grad_()) for side in sides)
        work.scores(Problem(images, captions), kind).sum().backward()

    works: dict[str, Callable[[], Any]] = {name: partial(step, work) for name, work in _right(failures)}
    return {"seconds": interleaved(works, repeats), "failures": failures, "repeats": repeats}


def _right(failures: dict[str, str | None]) -> list[tuple[str, Work]]:
    return [(name, work) for name, work in WORKS.items() if failures[name] is None]


def as_text(document: dict[str, Any]) -> str:
    """The tables for the console."""
    lines = []
    for title in ("forward", "forward and backward"):
        part = document[title]
        lines.append(f"\nvha + sum, float32, {title}, median of {part['repeats']}")
        for name, seconds in part["seconds"].items():
            times = seconds / part["seconds"]["here"]
            lines.append(f"  {name:28}{1000 * seconds:9.1f} ms{times:8.2f} times as long as here")
        lines += [f"  {name:28}  {why}" for name, why in part["failures"].items() if why]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    options = parser.parse_args()
    problem = make_problem(options, torch.device("cpu"))
    few = problem.first(FEW)
    with torch.inference_mode():
        forward = forward_times(problem, few, options.repeats)
    backward = backward_times(problem, few, options.repeats)
    sizes = {name: getattr(options, name) for name in ("images", "captions", "regions", "dim")}
    document = {"sizes": sizes, "forward": forward, "forward and backward": backward}
    print(as_text(document))
    print(f"\n{record('peers', document, options.out)}")


if __name__ == "__main__":
    main()
