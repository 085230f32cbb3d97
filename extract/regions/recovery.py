"""Boxes for published features that lost theirs: each row's is that of the proposal with the nearest feature.

Shapes: K published rows and P proposals of one image, n = min(K, P) matched ones, D feature dimension.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from data_tools.store.features import RegionFeatures
from extract.choices import MIN_COSINE
from extract.detector.detector import Detector
from extract.detector.proposals import Proposals


@dataclass(frozen=True)
class Recovery:
    """What takes a selection's place where the regions are known and their boxes are sought.

    Attributes:
        published: the features.
        fingerprint: of them, for the provenance.
        min_cosine: rows whose cosine with their proposal is below that have no box.
    """

    published: RegionFeatures
    fingerprint: str
    min_cosine: float = MIN_COSINE
    min_boxes: ClassVar[int] = 1

    def columns(
        self, image_id: str, size: tuple[int, int], proposals: Proposals, detector: Detector
    ) -> dict[str, np.ndarray]:
        """The store's columns for one image, K rows each, in the published order.

        `features` are the published ones, unchanged. Classes and attributes are what the detector predicts from
        them. `boxes` and `box_confidence`, the cosine, are those of the matched proposals; a row without one has
        the whole picture and the confidence 0.

        Args:
            image_id: which image.
            size: its height and width.
            proposals: of the detector in it.
            detector: whose proposals they are.

        Raises:
            InputError: the published features lack the image or cannot be read.
        """
        features = self.published.read(int(self.published.rows([image_id])[0]))
        on_device = torch.from_numpy(features).to(proposals.features.device, torch.float32)
        rows, matched, cosines = match_rows(on_device, proposals.features)
        known = cosines >= self.min_cosine
        boxes = np.tile(np.array([0, 0, size[1], size[0]], np.float32), (len(features), 1))
        boxes[rows[known]] = proposals.boxes.float().cpu().numpy()[matched[known]]
        confidence = np.zeros(len(features), np.float32)
        confidence[rows[known]] = cosines[known]
        classes, attributes = detector.classify(on_device)
        return {
            "features": features,
            "boxes": boxes,
            **_best("class", classes),
            **_best("attribute", attributes),
            "box_confidence": confidence,
        }

    def provenance_line(self) -> str:
        """The rule and its settings in one line, for a store's provenance."""
        return f"boxes recovered for the published features {self.fingerprint}, cosine from {self.min_cosine}"


def match_rows(features: torch.Tensor, proposed: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match rows (K, D) with rows (P, D) one to one so that the sum of their cosines is largest.

    >>> match_rows(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.eye(2))
    (array([0, 1]), array([1, 0]), array([1., 1.]))

    Returns:
        (n,) positions in the first, (n,) positions in the second, and their cosines (n,) float64, -1 where a
        number is not finite; a row of zeros has the cosine 0 with every row.
    """
    from scipy.optimize import linear_sum_assignment  # takes a third of a second

    units = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (features, proposed)]
    cosines = (units[0] @ units[1].T).clamp(-1, 1).nan_to_num(-1.0).cpu().numpy()
    rows, matched = linear_sum_assignment(cosines, maximize=True)
    return rows, matched, cosines[rows, matched]


def _best(kind: str, probabilities: torch.Tensor) -> dict[str, np.ndarray]:
    if not probabilities.shape[1]:  # of a network without attributes
        return {}
    scores, ids = probabilities.max(dim=1)
    return {f"{kind}_ids": ids.int().cpu().numpy(), f"{kind}_scores": scores.float().cpu().numpy()}
