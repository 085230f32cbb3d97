"""Recovering the boxes of published features: the plan of an extraction that looks for them, and what it found."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import InputError, UsageError
from data_tools.store.features import ARRAY_SUFFIX, RegionFeatures, ScanFeatures, ScanFolder, open_features
from data_tools.store.reading import FeatureStore
from extract.choices import MIN_COSINE, PUBLISHED, Dtype, Precision, RunOptions
from extract.config import check_detects, load_config, with_values
from extract.regions.recovery import Recovery
from extract.run.plan import ExtractionPlan
from extract.run.sources import find_sources
from extract.weights.locating import find_weights_of

SAMPLE = 256  # images that a fingerprint reads


def open_published(precomp: Path, split: str | None = None) -> RegionFeatures:
    """Published features: all arrays of a folder as one collection, one split's, or one file.

    Args:
        precomp: a folder with `{split}_ims.npy` and `{split}_ids.txt`, one such array, or a store.
        split: the only array of the folder to read.

    Raises:
        InputError: there are no such features, or they are damaged or inconsistent.
        UsageError: a split of what is no folder.
    """
    path = precomp.resolve()  # the processes of a run may have another working folder
    if split is not None:
        if not path.is_dir():
            raise UsageError(f"--split goes with a folder of arrays; {precomp} is none")
        return ScanFeatures(path / f"{split}{ARRAY_SUFFIX}")
    return ScanFolder(path) if path.is_dir() else open_features(path)


def fingerprint(features: RegionFeatures) -> str:
    """SHA-256 in hexadecimal of ids, counts, type and dimension, and the features of `SAMPLE` images."""
    found = hashlib.sha256(f"{features.dtype} {features.dim}\n".encode())
    found.update("".join(f"{image_id}\n" for image_id in features.image_ids).encode())
    found.update(features.counts.astype("<i8").tobytes())
    for row in np.unique(np.linspace(0, len(features) - 1, SAMPLE).astype(np.int64)).tolist():
        values = features.read(row)
        found.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def plan_recovery(
    precomp: Path,
    images: Path,
    *,
    split: str | None = None,
    min_cosine: float = MIN_COSINE,
    id_mapping: Path | None = None,
    config: str = PUBLISHED,
    weights: str | None = None,
    seed: int | None = None,
    precision: Precision = Precision.FP32,
    options: RunOptions | None = None,
) -> ExtractionPlan:
    """The extraction that recovers boxes; weights are fetched last, after everything else was checked.

    Args:
        precomp: see `open_published`.
        images: see `find_sources`; of its images those of the published features count, in their order.
        split: see `open_published`.
        min_cosine: rows whose cosine with their proposal is below that have no box.
        id_mapping: see `find_sources`.
        config: name of a shipped configuration, a YAML file, or a run folder of `butd train`.
        weights: see `find_weights_of`.
        seed: of random weights; by default the configuration's.
        precision: of convolutions and matrix products.
        options: see `RunOptions`.

    Raises:
        UsageError: see `open_published`, or the configuration has no default weights.
        InputError: the features, the configuration, the list or the weights cannot be read, or do not fit.
    """
    cfg = with_values(load_config(config), seed=seed)
    check_detects(cfg)
    published = open_published(precomp, split)
    if not len(published):
        raise InputError(f"{precomp}: holds no image")
    dim = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8  # of res5
    if published.dim != dim:
        raise InputError(f"{precomp}: features of {published.dim} numbers; those of {config} have {dim}")
    sources = find_sources(images, id_mapping).limited_to(published.image_ids, precomp)
    recovery = Recovery(published, fingerprint(published), min_cosine)
    file = find_weights_of(config, weights)
    dtype = Dtype(published.dtype.name)
    return ExtractionPlan(cfg, file, recovery, sources, None, precision, dtype, options or RunOptions())


@dataclass(frozen=True)
class Recovered:
    """How many rows of a store have a box.

    Attributes:
        rows: of all images.
        recovered: those with a box.
        mean_confidence: of these.
        incomplete: images of which some rows have a box and some have not.
        without: images of which no row has one.
    """

    rows: int
    recovered: int
    mean_confidence: float
    incomplete: int
    without: int

    @classmethod
    def of_store(cls, path: Path) -> "Recovered":
        """Count the rows of a store with recovered boxes."""
        rows = recovered = incomplete = without = 0
        total = 0.0
        with FeatureStore(path) as store:
            for block in store.blocks(features=False):
                confidence = block.regions["box_confidence"].astype(np.float64)
                number = np.repeat(np.arange(len(block.counts)), block.counts)
                known = np.bincount(number, weights=confidence > 0, minlength=len(block.counts))
                rows, recovered = rows + len(confidence), recovered + int(known.sum())
                total += float(confidence.sum())
                without += int((known == 0).sum())
                incomplete += int(((known > 0) & (known < block.counts)).sum())
        return cls(rows, recovered, total / max(recovered, 1), incomplete, without)

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "rows": self.rows,
            "recovered": self.recovered,
            "without_box": self.rows - self.recovered,
            "share": self.recovered / max(self.rows, 1),
            "mean_confidence": self.mean_confidence,
            "images_incomplete": self.incomplete,
            "images_without_boxes": self.without,
        }

    def as_text(self) -> str:
        """A line or two for the console."""
        found = self.as_json()
        lines = [
            f"  boxes: {self.recovered} of {self.rows} rows ({found['share']:.2%}), mean cosine "
            f"{self.mean_confidence:.5f}; {found['without_box']} rows have none: {self.incomplete} images lack "
            f"some, {self.without} images lack all"
        ]
        if self.recovered < self.rows / 2:
            few = "few boxes were recovered, and these are doubtful" if self.recovered else "no box was recovered"
            lines.append(
                f"  {few}; fix: check that the images and the id mapping are those of the features, and that the "
                "weights and the configuration are those that made them"
            )
        return "\n".join(lines)
