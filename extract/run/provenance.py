"""What a feature store says of how it was made."""

import hashlib
from importlib.metadata import version
from pathlib import Path

import cv2
import detectron2
from detectron2.config import CfgNode

from extract.config import labels_of, provenance_text
from extract.detector.precision import Precision
from extract.regions.selection import Selection
from extract.run.sources import Sources
from extract.run.summary import Options
from extract.weights.locating import sha256_of

PACKAGES = ("pixels-to-recall", "torch", "torchvision", "numpy", "pillow")


def run_provenance(
    cfg: CfgNode,
    weights: Path | None,
    selection: Selection,
    precision: Precision,
    options: Options,
    sources: Sources,
) -> dict[str, str]:
    """Everything that decides about the bytes of a store, as text by name."""
    folder = "/".join(sources.folder.resolve().parts[-2:])  # its place on the disk may differ between machines
    listing = "".join(f"{image.image_id}\t{image.file}\n" for image in sources.images)
    labels = labels_of(cfg)
    return {
        "config": provenance_text(cfg),
        "weights_sha256": sha256_of(weights) if weights else f"random, seed {max(cfg.SEED, 0)}",
        "selection": selection.describe(),
        "precision": precision.value,
        "feature_dtype": "none, boxes only" if options.boxes_only else options.dtype,
        "class_names": "\n".join(labels.classes),
        "attribute_names": "\n".join(labels.attributes),
        "versions": "\n".join(f"{package} {number}" for package, number in _versions().items()),
        "image_list_sha256": hashlib.sha256(f"{folder}\n{listing}".encode("utf-8", "surrogateescape")).hexdigest(),
    }


def _versions() -> dict[str, str]:
    own = {package: version(package) for package in PACKAGES}
    return {**own, "detectron2": detectron2.__version__, "opencv": cv2.__version__}
