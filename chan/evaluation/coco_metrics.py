"""CxC and ECCV Caption metrics of COCO's 5,000 test images, by the package eccv-caption.

COCO has five positive captions per image; CxC (Parekh et al. 2021) and ECCV Caption (Chun et al. 2022) add the
captions and images that annotators judged to match as well. The package identifies images by their COCO ids and
captions by their annotation ids, which split files do not have: a caption's id follows from its position, since
SCAN's `testall` and the package list the test captions in the same order.

Shapes: N images, C captions; scores are (N, C).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from chan.evaluation.recall import CUTOFFS
from data_tools.captions.splits import Split
from data_tools.errors import InputError, UsageError


@dataclass(frozen=True)
class CocoTest:
    """A split that is COCO's 5K test set, with the ids of its images (N,) and captions (C,)."""

    metrics: Any  # the `Metrics` of eccv-caption
    images: np.ndarray
    captions: np.ndarray

    @classmethod
    def from_split(cls, split: Split) -> "CocoTest":
        """Check that a split is COCO's 5K test set, and look up its ids.

        Raises:
            UsageError: eccv-caption is not installed.
            InputError: the split is not COCO's testall in SCAN's order.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # eccv-caption warns where a faster JSON reader is not installed
            try:
                from eccv_caption import Metrics
            except ImportError:
                raise UsageError("--eccv: needs the package eccv-caption (the extra `eccv`)") from None
            metrics = Metrics()
        captions = np.asarray(metrics.coco_ids, dtype=np.int64)
        owners = [metrics.coco_gts["t2i"][caption][0] for caption in captions.tolist()]
        found = [split.image_ids[image] for image in split.caption_images]
        if len(found) != len(owners):
            raise InputError(
                f"--eccv: split {split.name} has {len(found)} captions; COCO's testall has {len(owners)}"
            )
        for place, (image, owner) in enumerate(zip(found, owners, strict=True)):
            if not image.isdigit() or int(image) != owner:
                raise InputError(
                    f"--eccv: split {split.name}: caption {place + 1} is of image {image}; "
                    f"COCO's testall has one of image {owner} there"
                )
        return cls(metrics, np.array([int(image) for image in split.image_ids]), captions)

    def measure(self, scores: Tensor) -> dict[str, dict[str, float]]:
        """Metric -> direction (i2t, t2i) -> percent, of COCO, CxC and ECCV Caption.

        Ties count against the model: among equal scores the positives of any of the three are ranked last. So does
        a NaN.
        """
        table, metrics = scores.cpu().numpy(), self.metrics
        everything = (metrics.coco_gts, metrics.cxc_gts, metrics.eccv_gts)
        retrieved = {}
        for side, queries, candidates, rows in (
            ("i2t", self.images, self.captions, table),
            ("t2i", self.captions, self.images, table.T),
        ):
            place_of = {candidate: place for place, candidate in enumerate(candidates.tolist())}
            ranked = {}
            for query, row in zip(queries.tolist(), rows, strict=True):
                right = [place_of[answer] for gts in everything for answer in gts[side].get(query, ())]
                ranked[query] = candidates[_best(row, right)].tolist()
            retrieved[side] = ranked
        found = {}
        for name, recalls in (
            ("COCO 5K", metrics.coco_5k_recalls),
            ("CxC", metrics.cxc_recalls),
            ("ECCV", metrics.eccv_recalls),
        ):
            for cutoff in CUTOFFS:
                found[f"{name} R@{cutoff}"] = recalls(retrieved, "all", K=cutoff)
        more = metrics.eccv_metrics(retrieved, "all")
        found["ECCV mAP@R"], found["ECCV R-Precision"] = more["eccv_map_at_r"], more["eccv_rprecision"]
        return {
            name: {side: 100.0 * float(value) for side, value in sides.items()} for name, sides in found.items()
        }


def _best(scores: np.ndarray, right: list[int]) -> np.ndarray:
    """The best candidates, best first: as many as the metrics need, which is ten or, if more, the positives."""
    wrong = np.ones(len(scores), dtype=bool)
    wrong[right] = False
    known = np.where(np.isnan(scores), np.where(wrong, np.inf, -np.inf), scores)
    count = min(max(len(right), CUTOFFS[-1]), len(known))
    reached = np.flatnonzero(known >= np.partition(known, -count)[-count])
    return reached[np.lexsort((~wrong[reached], -known[reached]))]
