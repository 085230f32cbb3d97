"""What a feature store says of how it was made."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from detectron2.config import CfgNode

from extract.config import provenance_text
from extract.selection import CaffeSelection
from extract.sources import SourceImage
from extract.weights import sha256_of

PACKAGES = ("pixels-to-recall", "detectron2", "torch", "torchvision", "numpy", "pillow")


def describe_run(
    cfg: CfgNode, weights: Path | None, selection: CaffeSelection, dtype: str, images: Sequence[SourceImage]
) -> dict[str, str]:
    """Everything that decides about the bytes of a store, as text by name."""
    listing = "".join(f"{image.image_id}\t{image.file}\n" for image in images)
    return {
        "config": provenance_text(cfg),
        "weights_sha256": sha256_of(weights) if weights else f"random, seed {max(cfg.SEED, 0)}",
        "selection": selection.describe(),
        "precision": "fp32",
        "feature_dtype": dtype,
        "versions": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "image_list_sha256": hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest(),
    }
