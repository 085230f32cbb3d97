"""Checks of region features: all images present, all numbers finite, boxes inside their images."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_tools.checks.findings import Case, Report
from data_tools.checks.splits import NEEDED, CheckedSplits
from data_tools.console import Progress
from data_tools.errors import InputError, UnavailableError, UsageError
from data_tools.layout import STORE_NAME, feature_source
from data_tools.store.features import RegionFeatures, open_features
from data_tools.store.reading import FeatureStore

MADE_BY = ("config", "weights_sha256", "selection")  # provenance of a store of `extract-features`
_EXTRACT_AGAIN = "extract the images again, or remove them from the splits"


def check_features(
    data: Path,
    precomp: Path,
    features: Path | None,
    checked: CheckedSplits,
    mapping: Mapping[str, str],
    sizes: Mapping[str, tuple[int, int]],
    report: Report,
) -> None:
    """Check the features that training and evaluation would read, all of their numbers.

    Args:
        data: the folder of the dataset.
        precomp: the folder of its split files.
        features: features elsewhere, or None.
        checked: the splits.
        mapping: file by image id; empty if there is none.
        sizes: (height, width) of decoded images by id.
        report: receives the findings.
    """
    dims: dict[int, Path] = {}
    stores: dict[Path, RegionFeatures] = {}
    opened: dict[Path, tuple[RegionFeatures, set[int]]] = {}
    failed: dict[str, bool] = {}  # why features cannot be opened, and whether training needs them
    unavailable: set[str] = set()  # the reasons that say nothing about the content of a file
    for name, split in checked.splits.items():
        try:
            source = feature_source(data, name, features)
            reader = stores.get(source) or open_features(source, split)
        except (InputError, UsageError) as error:
            failed[str(error)] = failed.get(str(error), False) or name in NEEDED
            if isinstance(error, UnavailableError):
                unavailable.add(str(error))
            continue
        if isinstance(reader, FeatureStore):
            stores[source] = reader
        present = set(reader.image_ids)
        missing = [
            (line, f"{source} lacks image {i}") for i, line in checked.lines[name].items() if i not in present
        ]
        report.add("features", precomp / f"{name}_ids.txt", missing, _EXTRACT_AGAIN)
        dims.setdefault(reader.dim, source)
        rows = reader.rows([image_id for image_id in split.image_ids if image_id in present])
        opened.setdefault(source, (reader, set()))[1].update(rows.tolist())
    for fatal in (True, False):
        reasons = [reason for reason, needed in failed.items() if needed == fatal]
        locked: list[Case] = [(None, reason) for reason in reasons if reason in unavailable]
        report.add("features", precomp, locked, "make the file readable, and verify again", fatal)
        cases: list[Case] = [(None, reason) for reason in reasons if reason not in unavailable]
        report.add("features", precomp, cases, "extract the features, or name their file with --features", fatal)
    if len(dims) > 1:
        found = ", ".join(f"{dim} in {path.name}" for dim, path in dims.items())
        report.add(
            "dimensions",
            precomp,
            [(None, f"feature dimensions differ: {found}")],
            "extract all splits with one detector",
        )
    for source, (reader, used) in opened.items():
        _check_numbers(source, reader, sorted(used), report)
        if isinstance(reader, FeatureStore):
            _check_store(source, reader, mapping, report)
            _check_boxes(source, reader, sorted(used), sizes, report)
    parts = precomp / f"{STORE_NAME}.parts"
    if parts.is_dir():
        message = "part files of an unfinished extraction"
        fix = f"repeat the extract-features command, or run data-tools join --out {precomp / STORE_NAME}"
        report.add("parts", parts, [(None, message)], fix, fatal=False)


def _check_numbers(source: Path, reader: RegionFeatures, rows: list[int], report: Report) -> None:
    nan: list[Case] = []
    infinite: list[Case] = []
    zero: list[Case] = []
    none: list[Case] = []
    equal: list[Case] = []
    first: dict[bytes, str] = {}
    counts = reader.counts
    with Progress("features", len(rows), "images") as bar:
        for row in rows:
            image_id, values = reader.image_ids[row], reader.read(row)
            if not len(values):
                none.append((None, f"image {image_id} has no region"))
                bar.advance()
                continue
            if not np.isfinite(values).all():
                bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
                kind, name = (nan, "NaN") if np.isnan(values[bad]).any() else (infinite, "Inf")
                kind.append((None, f"image {image_id}, region {bad}: {name}"))
            blank = ~values.any(axis=1)
            if blank.any():
                zero.append((None, f"image {image_id}, region {int(np.flatnonzero(blank)[0])}: zeros only"))
            else:
                other = first.setdefault(hashlib.blake2b(values.tobytes(), digest_size=16).digest(), image_id)
                if other != image_id:
                    equal.append((None, f"images {other} and {image_id} have equal features"))
            bar.advance()
    for name, cases in (("NaN", nan), ("Inf", infinite), ("zeros", zero), ("region counts", none)):
        report.add(name, source, cases, _EXTRACT_AGAIN)
    report.add("duplicates", source, equal, "compare the images; keep one if they are the same", fatal=False)
    if rows:
        low, high = counts[rows].min(), counts[rows].max()
        spread = f"{low} regions" if low == high else f"{low} to {high} regions"
        report.facts.append(f"features: {source}, {len(rows)} images, {spread} x {reader.dim} {reader.dtype}")


def _check_store(source: Path, store: FeatureStore, mapping: Mapping[str, str], report: Report) -> None:
    provenance, again = (
        store.provenance,
        "extract the features again, so that the store records how they were made",
    )
    missing = [name for name in MADE_BY if name not in provenance]
    if missing and "converted_from" not in provenance:
        report.add(
            "provenance", source, [(None, f"lacks the attributes {', '.join(missing)}")], again, fatal=False
        )
    if provenance.get("feature_dtype", store.dtype.name) != store.dtype.name:
        message = f"feature_dtype is {provenance['feature_dtype']}, but the features are {store.dtype.name}"
        report.add("provenance", source, [(None, message)], again)
    failed = [
        (None, f"image {item.get('id')} could not be extracted: {item.get('reason')}") for item in store.failures
    ]
    fix = "replace the image files and extract with --overwrite, or remove the images from the splits"
    report.add("provenance", source, [*failed], fix, fatal=False)
    if mapping:
        unknown: list[Case] = [
            (None, f"image {i} is not in id_mapping.json") for i in store.image_ids if i not in mapping
        ]
        report.add("mapping", source, unknown, "extract with --id-mapping", fatal=False)
    columns = store.block(range(0), features=False).regions
    for kind in ("class", "attribute"):
        names = provenance.get(f"{kind}_names", "").splitlines()
        if names and f"{kind}_ids" in columns and len(store):
            found = [block.regions[f"{kind}_ids"] for block in store.blocks(features=False)]
            outside = [ids[(ids < 0) | (ids >= len(names))] for ids in found]
            if any(map(len, outside)):
                first = int(np.concatenate(outside)[0])
                message = f"{kind} {first} has no name; there are {len(names)} names"
                report.add("provenance", source, [(None, message)], again)


def _check_boxes(
    source: Path, store: FeatureStore, rows: list[int], sizes: Mapping[str, tuple[int, int]], report: Report
) -> None:
    bad: list[Case] = []
    outside: list[Case] = []
    resized: list[Case] = []
    used = {store.image_ids[row] for row in rows}
    for block in store.blocks(features=False):
        ends = np.cumsum(block.counts)
        for position, image_id in enumerate(block.image_ids):
            if image_id not in used:
                continue
            boxes = np.empty((0, 4), np.float32)
            if "boxes" in block.regions:
                boxes = block.regions["boxes"][ends[position] - block.counts[position] : ends[position]]
            if not np.isfinite(boxes).all():
                bad.append((None, f"image {image_id}: a box is NaN or Inf"))
            elif (boxes[:, :2] > boxes[:, 2:]).any():
                bad.append((None, f"image {image_id}: the corners of a box are reversed"))
            if block.image_sizes is None:
                continue
            height, width = (int(side) for side in block.image_sizes[position])
            if (boxes < -1).any() or (boxes > [width + 1, height + 1, width + 1, height + 1]).any():
                outside.append((None, f"image {image_id}: a box exceeds the image of {width} x {height} pixels"))
            if sizes.get(image_id, (height, width)) != (height, width):
                found = sizes[image_id]
                message = (
                    f"image {image_id}: {width} x {height} pixels when extracted, now {found[1]} x {found[0]}"
                )
                resized.append((None, message))
    report.add("boxes", source, bad, _EXTRACT_AGAIN)
    report.add("boxes", source, outside, _EXTRACT_AGAIN, fatal=False)
    report.add("boxes", source, resized, "extract again, or restore the image files")
