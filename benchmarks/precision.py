"""How much do lower precisions change the features, and which regions are selected?

    data-tools scenes --out scenes --train 12 --dev 1 --test 1
    python -m benchmarks.precision --images scenes/images                           # random weights
    python -m benchmarks.precision --images FOLDER --weights RUN/model_final.pth
    python -m benchmarks.precision --images FOLDER --config butd_r101_caffe --precisions tf32 bf16 fp16     # a GPU

Each image is extracted in fp32 and in the other precisions. Reported are, over all images and regions of fp32,
- the relative error of the feature, where the other precision is given fp32's box;
- the share of regions that the other precision, with its own proposals and selection, has too: one of its boxes
  has an IoU of 0.9, and the same class.
"""

import argparse
from pathlib import Path

import torch
from torchvision.ops import box_iou

from benchmarks.recording import record
from data_tools.devices import resolve_device
from data_tools.images.decoding import decode_bgr
from extract.build import build_detector
from extract.choices import Precision, Rule
from extract.config import load_config, suppresses_inclusively
from extract.detector.detector import Detector
from extract.regions.selection import Selection, build_selection
from extract.run.batches import select_regions
from extract.run.sources import find_sources
from extract.weights.locating import find_weights_of

SAME = 0.9  # IoU


def compare(exact: Detector, other: Detector, files: list[Path], selection: Selection) -> dict[str, float]:
    """Errors of features and shares of regions, of `other` against `exact`."""
    errors, same = [], []
    for file in files:
        image, geometry = exact.resizing(decode_bgr(file))
        ours, theirs = (select_regions(found([image], [geometry])[0], selection) for found in (exact, other))
        boxes = torch.from_numpy(ours["boxes"])
        [given] = other.predict_boxes([image], [geometry], [boxes])
        [reference] = exact.predict_boxes([image], [geometry], [boxes])
        difference = (given.features - reference.features).norm(dim=1) / reference.features.norm(dim=1)
        errors.append(difference.cpu())
        overlap = box_iou(boxes, torch.from_numpy(theirs["boxes"])) >= SAME
        alike = torch.from_numpy(ours["class_ids"])[:, None] == torch.from_numpy(theirs["class_ids"])[None]
        same.append((overlap & alike).any(dim=1))
    joint = torch.cat(errors)
    return {
        "error_mean": float(f"{joint.mean():.2e}"),
        "error_most": float(f"{joint.max():.2e}"),
        "same_regions": round(float(torch.cat(same).float().mean()), 4),
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--config", default="scenes")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--count", type=int, default=30, help="images")
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--precisions", type=Precision, nargs="+", default=[Precision.BF16, Precision.FP16])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    arguments = parser.parse_args()
    cfg, device = load_config(arguments.config), resolve_device(arguments.device)
    selection = build_selection(Rule.CAFFE, (arguments.regions,) * 2, inclusive=suppresses_inclusively(cfg))
    weights = find_weights_of(arguments.config, arguments.weights)
    sources = find_sources(arguments.images)
    files = [sources.folder / image.file for image in sources.images[: arguments.count]]
    exact = build_detector(cfg, weights, device)
    rows = {}
    for precision in arguments.precisions:
        found = compare(exact, build_detector(cfg, weights, device, precision), files, selection)
        rows[precision.value] = found
        print(
            f"{precision.value}  error of a feature {found['error_mean']:.1e}, at most {found['error_most']:.1e}; "
            f"the same regions {found['same_regions']:.1%}",
            flush=True,
        )
    about = {"config": Path(arguments.config).name, "weights": "random" if weights is None else weights.name}
    document = {**about, "images": len(files), "regions": arguments.regions, **rows}
    print(record("precision", document, arguments.out))


if __name__ == "__main__":
    main()
