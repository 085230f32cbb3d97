"""What a feature store says of how it was made."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from detectron2.config import CfgNode

from data_tools.labels import Labels, load_labels
from extract.config import provenance_text
from extract.precision import Precision
from extract.selection import Selection
from extract.sources import SourceImage
from extract.summary import Options
from extract.weights import sha256_of

PACKAGES = ("pixels-to-recall", "detectron2", "torch", "torchvision", "numpy", "pillow")


def describe_run(
    cfg: CfgNode,
    weights: Path | None,
    selection: Selection,
    precision: Precision,
    options: Options,
    images: Sequence[SourceImage],
) -> dict[str, str]:
    """Everything that decides about the bytes of a store, as text by name."""
    listing = "".join(f"{image.image_id}\t{image.file}\n" for image in images)
    labels = load_labels(cfg.MODEL.LABELS) if cfg.MODEL.LABELS else Labels([], [])
    return {
        "config": provenance_text(cfg),
        "weights_sha256": sha256_of(weights) if weights else f"random, seed {max(cfg.SEED, 0)}",
        "selection": selection.describe(),
        "precision": precision.value,
        "feature_dtype": "none, boxes only" if options.boxes_only else options.dtype,
        "class_names": "\n".join(labels.classes),
        "attribute_names": "\n".join(labels.attributes),
        "versions": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "image_list_sha256": hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest(),
    }
