"""Several models on one split: their recall side by side, and whether two of them differ by more than chance.

Shapes: C captions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chan.evaluation.evaluate import Evaluation
from chan.evaluation.intervals import Interval, paired_bootstrap
from chan.evaluation.recall import Ranking


@dataclass(frozen=True)
class Difference:
    """By how much the rsum of the second model is above that of the first.

    Attributes:
        rsum: the difference.
        interval: its 95 % interval, by a bootstrap that draws the same images for both.
        p: twice the share of draws in which the difference has the other sign or is zero, at most 1.
    """

    rsum: float
    interval: Interval
    p: float


def difference(first: Evaluation, second: Evaluation, seed: int) -> Difference:
    """The difference of two models that were evaluated on the same split with the same folds."""
    drawn = paired_bootstrap(first.ranking, second.ranking, seed)
    low, high = np.percentile(drawn, (2.5, 97.5))
    p = min(1.0, 2 * min(float((drawn <= 0).mean()), float((drawn >= 0).mean())))
    return Difference(second.recall.rsum - first.recall.rsum, (float(low), float(high)), p)


def most_different(first: Ranking, second: Ranking, count: int) -> list[int]:
    """The captions whose images the two models rank most differently, by the ratio of the ranks, at most `count`.

    Captions that both rank alike are left out.
    """
    ratios = np.abs(np.log1p(first.t2i.cpu().numpy()) - np.log1p(second.t2i.cpu().numpy()))
    order = np.argsort(-ratios, kind="stable")[:count]
    return [int(caption) for caption in order if ratios[caption] > 0]


def as_table(names: Sequence[str], results: Sequence[Evaluation]) -> str:
    """One line per model: the six recalls, rsum and its interval; below them chance."""
    width = max(12, *(len(name) for name in names))
    heads = "".join(f"{name:>7}" for name in 2 * ("R@1", "R@5", "R@10"))
    lines = [
        f"{'':{width}}{'image to text':>21}{'text to image':>21}",
        f"{'':{width}}{heads}{'rsum':>8}  95 %",
    ]
    for name, result in zip(names, results, strict=True):
        sides = [(side.r1, side.r5, side.r10) for side in (result.recall.i2t, result.recall.t2i)]
        low, high = result.intervals.rsum
        numbers = "".join(f"{value:7.1f}" for side in sides for value in side)
        lines.append(f"{name:{width}}{numbers}{result.recall.rsum:8.1f}  {low:.1f}-{high:.1f}")
    by_chance = results[0].chance
    numbers = "".join(f"{value:7.1f}" for side in (by_chance.i2t, by_chance.t2i) for value in side)
    lines.append(f"{'chance':{width}}{numbers}{by_chance.rsum:8.1f}")
    return "\n".join(lines)
