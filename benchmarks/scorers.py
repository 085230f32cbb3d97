"""Ways to score all pairs on a GPU, this project's and others', and whether they are right.

The packages `late-interaction-kernels` and `flash-maxsim` are optional; they add maxima up over words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.published import padded, published_scores
from benchmarks.scoring import TYPES, Problem
from chan.packing import Packed
from chan.scoring import hard_assignment

TOLERANCE = 3e-2  # of a score; a product of unit rows in bfloat16 is off by up to 2^-8, and LSE has beta = 0.1
GRADIENT_TOLERANCE = 0.3  # of the gradient's norm: where products round to the same number, another region wins

Scores = Callable[[Problem, torch.dtype], Tensor]
"""From a problem and the type of its products to (images, captions) scores."""


@dataclass(frozen=True)
class Work:
    """A way to score all pairs, and the pooling that it has."""

    scores: Scores
    pooling: str


def by_kernel(pooling: str) -> Scores:
    """This project's scores, which take the kernel where there is one."""
    names = {kind: name for name, kind in TYPES.items()}
    return lambda problem, kind: problem.scores(names[kind], pooling=pooling)


def by_tiles(pooling: str) -> Scores:
    """The same without the kernel."""

    def scores(problem: Problem, kind: torch.dtype) -> Tensor:
        with patch.object(hard_assignment, "has_kernel", lambda rows, precision=None: False):
            return by_kernel(pooling)(problem, kind)

    return scores


def late_interaction(problem: Problem, kind: torch.dtype) -> Tensor:
    """By the package late-interaction-kernels, on packed rows."""
    from late_interaction_kernels import maxsim_varlen

    sides = problem.captions, problem.images
    ends = (side.offsets.to(side.rows.device, torch.int32) for side in sides)
    longest = (int(side.lengths.max()) for side in sides)
    return maxsim_varlen(*(side.rows.to(kind) for side in sides), *ends, *longest).T


def flash_maxsim(problem: Problem, kind: torch.dtype) -> Tensor:
    """By the package flash-maxsim, on padded rows with lengths."""
    from flash_maxsim.flash_maxsim import flash_maxsim_batched
    from flash_maxsim.flash_maxsim_batched_train import flash_maxsim_batched_train

    sides = problem.captions, problem.images
    words, regions = (padded(side)[0].to(kind) for side in sides)
    lengths = [side.lengths.to(side.rows.device, torch.int32) for side in sides]
    score = flash_maxsim_batched_train if words.requires_grad else flash_maxsim_batched
    return score(words, regions, shared_docs=True, query_lengths=lengths[0], doc_lengths=lengths[1]).T


WORKS = {
    "kernel, LSE": Work(by_kernel("lse"), "lse"),
    "tiles of PyTorch, LSE": Work(by_tiles("lse"), "lse"),
    "kernel, sum": Work(by_kernel("sum"), "sum"),
    "late-interaction-kernels, sum": Work(late_interaction, "sum"),
    "flash-maxsim, sum": Work(flash_maxsim, "sum"),
}


def reason(error: Exception) -> str:
    """One line of what a work raised."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]


def failure(work: Work, few: Problem, kind: torch.dtype) -> str | None:
    """Why a work cannot be timed: what it raised, or by how much its scores differ from those in float64."""
    expected = _published(_rows(few, kind, torch.float64), work.pooling)
    try:
        found = work.scores(few, kind)
    except Exception as error:
        return reason(error)
    words = int(few.captions.lengths.max()) if work.pooling == "sum" else 1
    difference = float((found.double() - expected).abs().max()) / words
    return None if difference < TOLERANCE else f"scores differ by {difference:.2g}"


def wrong_gradient(work: Work, few: Problem, kind: torch.dtype) -> str | None:
    """The same of the gradient of all scores' sum, by its norm."""
    wrong = failure(work, few, kind)
    if wrong:
        return wrong
    gradients = []
    for exact in (torch.float64, torch.float32):
        problem = _rows(few, kind, exact)
        leaves = [side.rows.requires_grad_() for side in (problem.images, problem.captions)]
        try:
            scores = _published(problem, work.pooling) if exact == torch.float64 else work.scores(problem, kind)
            scores.sum().backward()
        except Exception as error:
            return reason(error)
        gradients.append(torch.cat([leaf.grad.double() for leaf in leaves if leaf.grad is not None]))
    difference = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    return None if difference < GRADIENT_TOLERANCE else f"gradients differ by {difference:.2g} of their norm"


def _rows(problem: Problem, kind: torch.dtype, exact: torch.dtype) -> Problem:
    """With rows rounded to `kind`, held in `exact`."""

    def rounded(side: Packed) -> Packed:
        return side.with_rows(side.rows.detach().to(kind).to(exact))

    return Problem(rounded(problem.images), rounded(problem.captions))


def _published(problem: Problem, pooling: str) -> Tensor:
    return published_scores(padded(problem.images), padded(problem.captions), pooling=pooling)
