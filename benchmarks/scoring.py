"""What does scoring all pairs cost, beside one matrix product and beside the published formulas?

    python -m benchmarks.scoring                                 # 128 x 128; about a minute
    python -m benchmarks.scoring --images 384 --captions 384     # the paper's batch

All works see the same embeddings and run in turns in one process. The limit is the product of all regions with
all words of the same type, in the faster operand order. That scores, and the recall they lead to, equal those of
the published formulas is checked first.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.published import padded, published_gpo, published_scores
from benchmarks.recording import record
from benchmarks.timing import interleaved
from chan.evaluation.recall import measure
from chan.model.aggregation import Aggregation
from chan.packing import Packed, offsets_of
from chan.scoring.codings import CODINGS
from chan.scoring.hard_assignment import max_similarities
from chan.scoring.pairwise import pairwise_scores

POOLINGS = ("lse", "max", "mean", "sum", "softmax")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 4e-3}  # relative to the largest score
NOISE = 14.0  # of words beside their regions: recall is then neither 0 nor 100


@dataclass(frozen=True)
class Problem:
    """Embeddings, packed and padded: image i goes with caption i."""

    images: Packed
    captions: Packed

    def scores(self, precision: str = "fp32", coding: str = "vha", pooling: str = "lse") -> Tensor:
        """By this project."""
        return pairwise_scores(
            self.images.rows,
            self.images.offsets,
            self.captions.rows,
            self.captions.offsets,
            coding=coding,
            pooling=pooling,
            precision=precision,
        )

    def first(self, count: int) -> "Problem":
        """The first images and captions alone."""
        return Problem(*(side.slice(0, min(count, len(side))) for side in (self.images, self.captions)))


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The options that `make_problem` wants, and those of every comparison."""
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="another results file than this machine's")


def make_problem(sizes: argparse.Namespace, device: torch.device) -> Problem:
    """Images of equally many regions; captions of 8 to 20 words, each of them near a region of its image."""
    random = torch.Generator().manual_seed(0)
    regions = torch.randn(sizes.images, sizes.regions, sizes.dim, generator=random)
    lengths = torch.randint(8, 21, (sizes.captions,), generator=random)
    owner = (torch.arange(sizes.captions) * sizes.images // sizes.captions).repeat_interleave(lengths)
    near = torch.randint(sizes.regions, (len(owner),), generator=random)
    words = regions[owner, near] + NOISE * torch.randn(len(owner), sizes.dim, generator=random)
    images = Packed(normalize(regions.flatten(0, 1), dim=1), torch.arange(sizes.images + 1) * sizes.regions)
    return Problem(images.to(device), Packed(normalize(words, dim=1), offsets_of(lengths)).to(device))


def forward_times(problem: Problem, precision: str, repeats: int) -> dict[str, Any]:
    """Hard assignment with LSE, without a gradient."""
    kind = TYPES[precision]
    regions, words = problem.images.rows.to(kind), problem.captions.rows.to(kind)
    images, captions = padded(problem.images), padded(problem.captions)
    both = (images[0].to(kind), images[1]), (captions[0].to(kind), captions[1])
    products = torch.empty(len(regions), len(words), device=regions.device, dtype=kind)
    expected = published_scores(images, captions)
    scores = problem.scores(precision)
    difference = float((scores - expected).abs().max() / expected.abs().max())
    if not difference < TOLERANCE[precision]:
        raise SystemExit(f"{precision}: scores differ by {difference:.1e} of the largest")
    owners = torch.arange(len(problem.captions)) * len(problem.images) // len(problem.captions)
    recall, published_recall = measure(scores, owners).rsum, measure(expected, owners).rsum
    if precision == "fp32" and recall != published_recall:
        raise SystemExit(f"rsum {recall}, by the published formulas {published_recall}")
    also = {} if precision == "fp32" else {"published formulas": lambda: published_scores(*both)}
    seconds = interleaved(
        {
            "regions x words": lambda: regions @ words.T,
            "words x regions": lambda: words @ regions.T,
            "copy of the products": lambda: products.clone(),
            **also,
            "published formulas, fp32": lambda: published_scores(images, captions),
            "maxima, words first, fresh memory": lambda: words_first(problem, kind),
            "maxima, as here": lambda: max_similarities(problem.captions.rows, problem.images, kind),
            "here": lambda: problem.scores(precision),
        },
        repeats,
    )
    limit = min(seconds["regions x words"], seconds["words x regions"])
    return {
        "precision": precision,
        "seconds": seconds,
        "share_of_product": seconds["here"] / limit,
        "times_faster": seconds["published formulas, fp32"] / seconds["here"],
        "difference": difference,
        "rsum": recall,
        "rsum_published": published_recall,
        "repeats": repeats,
    }


def words_first(problem: Problem, kind: torch.dtype) -> Tensor:
    """(words, images) maxima the way they were computed before: words first, fresh memory for each tile."""
    regions, images = problem.images.rows.to(kind), len(problem.images)
    tiles = problem.captions.rows.to(kind).split(max(1, (1 << 20) // len(regions)))
    return torch.cat([(words @ regions.T).unflatten(1, (images, -1)).amax(2) for words in tiles])


def backward_times(problem: Problem, precision: str, repeats: int) -> dict[str, Any]:
    """Hard assignment with LSE and its gradient, of scores that all count and of the hardest negatives."""
    rows = [side.rows.clone().requires_grad_() for side in (problem.images, problem.captions)]
    ours = Problem(problem.images.with_rows(rows[0]), problem.captions.with_rows(rows[1]))

    def published() -> Tensor:
        images, captions = padded(ours.images), padded(ours.captions)
        return published_scores(images, captions)

    def hardest(scores: Tensor) -> Tensor:
        return (0.05 + scores.amax(1) - scores.diagonal()).clamp(min=0).sum()

    def step(scores: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]) -> None:
        for leaf in rows:
            leaf.grad = None
        loss(scores()).backward()

    def here() -> Tensor:
        return ours.scores(precision)

    gradients = []
    for scores in (here, published):
        step(scores, torch.sum)
        gradients.append(torch.cat([leaf.grad.flatten() for leaf in rows if leaf.grad is not None]))
    difference = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    if precision == "fp32" and not difference < 1e-4:
        raise SystemExit(f"gradients differ by {difference:.1e}")
    seconds = interleaved(
        {
            "published formulas, fp32, all pairs": lambda: step(published, torch.sum),
            "here, all pairs": lambda: step(here, torch.sum),
            "published formulas, fp32, hardest": lambda: step(published, hardest),
            "here, hardest": lambda: step(here, hardest),
        },
        repeats,
    )
    return {
        "precision": precision,
        "seconds": seconds,
        "times_faster_all": seconds["published formulas, fp32, all pairs"] / seconds["here, all pairs"],
        "times_faster_hardest": seconds["published formulas, fp32, hardest"] / seconds["here, hardest"],
        "gradient_difference": difference,
        "repeats": repeats,
    }


def coding_times(problem: Problem, repeats: int) -> list[dict[str, Any]]:
    """In float32: codings with LSE (SCAN's with its mean), all poolings of hard assignment, GPO with a product."""
    cases = [(coding, "mean" if coding in ("t2i", "i2t") else "lse") for coding in CODINGS]
    cases += [("vha", pooling) for pooling in POOLINGS[1:]]
    images, captions = padded(problem.images), padded(problem.captions)
    rows = []
    for coding, pooling in cases:

        def here(coding: str = coding, pooling: str = pooling) -> Tensor:
            return problem.scores("fp32", coding, pooling)

        def published(coding: str = coding, pooling: str = pooling) -> Tensor:
            return published_scores(images, captions, coding, pooling)

        difference = float((here() - published()).abs().max() / published().abs().max())
        if not difference < 1e-4:
            raise SystemExit(f"{coding} {pooling}: scores differ by {difference:.1e} of the largest")
        seconds = interleaved({"published": published, "here": here}, repeats)
        faster = seconds["published"] / seconds["here"]
        rows.append({"coding": coding, "pooling": pooling, "seconds": seconds, "times_faster": faster})
    return [*rows, global_times(problem, repeats)]


def global_times(problem: Problem, repeats: int) -> dict[str, Any]:
    """VSE-infinity's pooling of both sides and the product of the vectors.

    The weights of a length are computed once here, by the public code in every batch.
    """
    with torch.inference_mode(False):  # weights made outside, as those of a model are
        aggregation = Aggregation("gpo").to(problem.images.rows.device).eval()
    weights = aggregation.gpo
    assert weights is not None
    sides = (problem.images, problem.captions)

    def here() -> Tensor:
        images, captions = (aggregation(side).rows for side in sides)
        return images @ captions.T

    def published() -> Tensor:
        images, captions = (published_gpo(*padded(side), weights) for side in sides)
        return images @ captions.T

    difference = float((here() - published()).abs().max() / published().abs().max())
    if not difference < 1e-4:
        raise SystemExit(f"gpo: scores differ by {difference:.1e} of the largest")
    seconds = interleaved({"published": published, "here": here}, repeats)
    faster = seconds["published"] / seconds["here"]
    return {"coding": "global", "pooling": "gpo", "seconds": seconds, "times_faster": faster}


def as_text(document: dict[str, Any]) -> str:
    """The tables for the console."""
    lines = []
    for row in document["forward"]:
        lines.append(f"\nvha + lse, {row['precision']}, median of {row['repeats']}")
        lines += [f"  {name:38}{1000 * value:9.1f} ms" for name, value in row["seconds"].items()]
        lines.append(
            f"  {row['share_of_product']:.2f} times the product; {row['times_faster']:.1f} times faster than the "
            f"published formulas in float32;\n  scores equal to {row['difference']:.0e}; "
            f"rsum {row['rsum']:.1f} and {row['rsum_published']:.1f}"
        )
    for row in document["backward"]:
        lines.append(f"\nforward and backward, {row['precision']}, median of {row['repeats']}")
        lines += [f"  {name:38}{1000 * value:9.1f} ms" for name, value in row["seconds"].items()]
        lines.append(
            f"  {row['times_faster_all']:.1f} and {row['times_faster_hardest']:.1f} times faster; "
            f"gradients equal to {row['gradient_difference']:.0e}"
        )
    lines.append(f"\n{'float32':12}{'published':>12}{'here':>12}{'faster':>9}")
    for row in document["codings"]:
        published, here = (1000 * row["seconds"][name] for name in ("published", "here"))
        name = f"{row['coding']} {row['pooling']}"
        lines.append(f"{name:12}{published:9.1f} ms{here:9.1f} ms{row['times_faster']:8.1f}x")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--precisions", nargs="+", choices=list(TYPES), default=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    problem = make_problem(options, torch.device(options.device))
    with torch.inference_mode():
        forward = [forward_times(problem, precision, options.repeats) for precision in options.precisions]
        codings = coding_times(problem, max(1, options.repeats // 3))
    backward = [backward_times(problem, precision, options.repeats) for precision in options.precisions]
    sizes = {name: getattr(options, name) for name in ("images", "captions", "regions", "dim", "device")}
    document = {"sizes": sizes, "forward": forward, "backward": backward, "codings": codings}
    print(as_text(document))
    print(f"\n{record('scoring', document, options.out)}")


if __name__ == "__main__":
    main()
