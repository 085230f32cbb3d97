"""How many boxes of published features are found again, if the pipeline that made them differed a little?

    butd train --config scenes --data FOLDER --out RUN           # five minutes on two cores
    python -m benchmarks.recovery --weights RUN/model_final.pth

Drawn scenes that the detector was not trained on stand for the collection. Their features are made, disturbed, and
matched with the proposals of the detector as `butd recover-boxes` does. For each disturbance: the share of rows
that get a box at all (cosine of at least `MIN_COSINE`), and of these boxes the shares whose IoU with the true one
is at least 0.9 and 0.99. Weights have to be trained: with random ones, the least change gives other proposals.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recording import record
from data_tools.checks.comparison import box_ious
from data_tools.images.decoding import decode_bgr
from data_tools.scenes.dataset import write_scenes
from extract.build import build_detector
from extract.choices import MIN_COSINE, Rule
from extract.config import load_config, suppresses_inclusively
from extract.detector.detector import Detector
from extract.detector.proposals import Proposals
from extract.regions.recovery import match_rows
from extract.regions.selection import build_selection
from extract.run.sources import find_sources
from extract.weights.locating import find_weights_of, sha256_of

SEED = 77  # of the scenes, so that they are not those of a training
IOUS = (0.9, 0.99)

Row = tuple[torch.Tensor, np.ndarray]  # features (K, D) and boxes (K, 4) of one image


def proposals_of(detector: Detector, images: Sequence[np.ndarray]) -> list[Proposals]:
    """The proposals in each image (height, width, 3), BGR."""
    found = []
    for image in images:
        pixels, geometry = detector.resizing(image)
        found += detector([pixels], [geometry])
    return found


def resized(detector: Detector, method: str | None = None, longer: int = 0) -> Detector:
    """The same network behind another resize: of another method, or to a shorter side of so many pixels more."""
    own = detector.resizing
    resizing = replace(own, method=method or own.method, min_side=own.min_side + longer)
    return Detector(detector.model, resizing, detector.inclusive)


def shares(published: Sequence[Row], proposals: Sequence[Proposals]) -> dict[str, float]:
    """The shares of rows with a box, and of right boxes among these."""
    cosines, overlaps = [], []
    for (features, boxes), proposed in zip(published, proposals, strict=True):
        rows, matched, found = match_rows(features.float(), proposed.features)
        cosines.append(found)
        overlaps.append(box_ious(boxes[rows], proposed.boxes.numpy()[matched]))
    known = np.concatenate(cosines) >= MIN_COSINE
    right = np.concatenate(overlaps)[known]
    result = {"with_box": float(known.mean())}
    return result | {f"iou_{level}": float((right >= level).mean()) if len(right) else 0.0 for level in IOUS}


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="scenes")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--count", type=int, default=60, help="scenes")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    arguments = parser.parse_args()

    cfg = load_config(arguments.config)
    weights = find_weights_of(arguments.config, arguments.weights)
    detector = build_detector(cfg, weights, torch.device("cpu"))
    selection = build_selection(Rule.CAFFE, tuple(cfg.TEST.REGIONS), inclusive=suppresses_inclusively(cfg))
    random = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), train=0, dev=0, test=arguments.count, seed=SEED)
        images = [decode_bgr(Path(folder, "images", i.file)) for i in find_sources(Path(folder, "images")).images]

    def rows_of(found: Sequence[Proposals]) -> list[Row]:
        chosen = [selection(proposals).rows for proposals in found]
        return [(p.features[rows], p.boxes[rows].numpy()) for p, rows in zip(found, chosen, strict=True)]

    def grey(image: np.ndarray) -> np.ndarray:
        return (image.astype(int) + random.integers(-1, 2, image.shape)).clip(0, 255).astype(np.uint8)

    def noisy(features: torch.Tensor) -> torch.Tensor:
        return features * (1 + 1e-3 * torch.from_numpy(random.normal(size=features.shape)))

    own = proposals_of(detector, images)
    exact = rows_of(own)
    other = next(method for method in ("torch", "pillow") if method != cfg.INPUT.RESIZE)
    cases: dict[str, Callable[[], list[Row]]] = {
        "the same pipeline": lambda: exact,
        "features in float16": lambda: [(features.half(), boxes) for features, boxes in exact],
        "features with relative noise of 1e-3": lambda: [(noisy(features), boxes) for features, boxes in exact],
        "another implementation of the resize": lambda: rows_of(proposals_of(resized(detector, other), images)),
        "pixels one grey level more or less": lambda: rows_of(proposals_of(detector, [*map(grey, images)])),
        "resized to one pixel more": lambda: rows_of(proposals_of(resized(detector, longer=1), images)),
        "resized to four pixels more": lambda: rows_of(proposals_of(resized(detector, longer=4), images)),
        "features of another picture": lambda: exact[1:] + exact[:1],
    }
    results: dict[str, Any] = {}
    for name, made in cases.items():
        results[name] = found = shares(made(), own)
        print(f"{name:44}" + "".join(f"{key} {value:7.2%}   " for key, value in found.items()))
    document = {
        "config": arguments.config,
        "weights_sha256": "random" if weights is None else sha256_of(weights),
        "images": len(images),
        "min_cosine": MIN_COSINE,
        "shares": results,
    }
    print(record("recovery", document, arguments.out))


if __name__ == "__main__":
    main()
