"""Checks of region features: every image there, every number usable, boxes in their pictures."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_tools.checks.findings import Case, Report
from data_tools.checks.splits import NEEDED, CheckedSplits
from data_tools.console import Progress
from data_tools.errors import InputError, UsageError
from data_tools.layout import STORE_NAME, feature_source
from data_tools.store.features import RegionFeatures, open_features
from data_tools.store.reading import FeatureStore

MADE_BY = ("config", "weights_sha256", "selection")  # what a store of `extract-features` says of itself
_AGAIN = "extract the images again, or take them out of the splits"


def check_features(
    data: Path,
    precomp: Path,
    features: Path | None,
    checked: CheckedSplits,
    mapping: Mapping[str, str],
    sizes: Mapping[str, tuple[int, int]],
    report: Report,
) -> None:
    """The features that training and evaluation would read, all of their numbers."""
    dims: dict[int, Path] = {}
    stores: dict[Path, RegionFeatures] = {}
    opened: dict[Path, tuple[RegionFeatures, set[int]]] = {}
    closed: dict[str, bool] = {}  # why features cannot be opened, and whether training stops there
    for name, split in checked.splits.items():
        try:
            source = feature_source(data, name, features)
            reader = stores.get(source) or open_features(source, split)
        except (InputError, UsageError) as error:
            closed[str(error)] = closed.get(str(error), False) or name in NEEDED
            continue
        if isinstance(reader, FeatureStore):
            stores[source] = reader
        present = set(reader.image_ids)
        lost = [
            (line, f"{source} holds no image {i}") for i, line in checked.lines[name].items() if i not in present
        ]
        report.first_of("features", precomp / f"{name}_ids.txt", lost, _AGAIN)
        dims.setdefault(reader.dim, source)
        rows = reader.rows([image_id for image_id in split.image_ids if image_id in present])
        opened.setdefault(source, (reader, set()))[1].update(rows.tolist())
    for fatal in (True, False):
        cases: list[Case] = [(None, reason) for reason, stops in closed.items() if stops == fatal]
        report.first_of("features", precomp, cases, "extract features, or name them: --features", fatal)
    if len(dims) > 1:
        said = ", ".join(f"{dim} in {path.name}" for dim, path in dims.items())
        report.first_of(
            "dimensions", precomp, [(None, f"features differ in length: {said}")], "use one detector for all"
        )
    for source, (reader, used) in opened.items():
        _check_numbers(source, reader, sorted(used), report)
        if isinstance(reader, FeatureStore):
            _check_store(source, reader, mapping, report)
            _check_boxes(source, reader, sorted(used), sizes, report)
    parts = precomp / f"{STORE_NAME}.parts"
    if parts.is_dir():
        message = "parts of an extraction that did not end"
        remedy = f"go on with the same extract-features command, or data-tools join --out {precomp / STORE_NAME}"
        report.first_of("parts", parts, [(None, message)], remedy, fatal=False)


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
                    equal.append((None, f"images {other} and {image_id} have the same features"))
            bar.advance()
    for name, cases in (("NaN", nan), ("Inf", infinite), ("zeros", zero), ("region counts", none)):
        report.first_of(name, source, cases, _AGAIN)
    report.first_of("duplicates", source, equal, "see whether the pictures are the same", fatal=False)
    if rows:
        least, most = counts[rows].min(), counts[rows].max()
        spread = f"{least} regions" if least == most else f"{least} to {most} regions"
        report.facts.append(f"features: {source}, {len(rows)} images, {spread} x {reader.dim} {reader.dtype}")


def _check_store(source: Path, store: FeatureStore, mapping: Mapping[str, str], report: Report) -> None:
    made, again = store.provenance, "extract the features again to know how they were made"
    missing = [name for name in MADE_BY if name not in made]
    if missing and "converted_from" not in made:
        report.first_of(
            "provenance", source, [(None, f"does not say its {', '.join(missing)}")], again, fatal=False
        )
    if made.get("feature_dtype", store.dtype.name) != store.dtype.name:
        message = f"feature_dtype says {made['feature_dtype']}, the features are {store.dtype.name}"
        report.first_of("provenance", source, [(None, message)], again)
    failed = [
        (None, f"image {item.get('id')} could not be extracted: {item.get('reason')}") for item in store.failures
    ]
    remedy = "mend the pictures and extract with --overwrite, or leave the images out of the splits"
    report.first_of("provenance", source, [*failed], remedy, fatal=False)
    if mapping:
        strange: list[Case] = [
            (None, f"image {i} is not in id_mapping.json") for i in store.image_ids if i not in mapping
        ]
        report.first_of("mapping", source, strange, "extract with the mapping: --id-mapping", fatal=False)
    columns = store.block(range(0), features=False).regions
    for kind in ("class", "attribute"):
        names = made.get(f"{kind}_names", "").splitlines()
        if names and f"{kind}_ids" in columns and len(store):
            most = max(int(b.regions[f"{kind}_ids"].max(initial=0)) for b in store.blocks(features=False))
            if most >= len(names):
                message = f"{kind} {most} has no name: there are {len(names)}"
                report.first_of("provenance", source, [(None, message)], again)


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
                bad.append((None, f"image {image_id}: a box ends before it begins"))
            if block.image_sizes is None:
                continue
            height, width = (int(side) for side in block.image_sizes[position])
            if (boxes < -1).any() or (boxes > [width + 1, height + 1, width + 1, height + 1]).any():
                outside.append((None, f"image {image_id}: a box lies outside its {width} x {height} pixels"))
            if sizes.get(image_id, (height, width)) != (height, width):
                now = sizes[image_id]
                message = f"image {image_id} was {width} x {height} pixels, its file is {now[1]} x {now[0]}"
                resized.append((None, message))
    report.first_of("boxes", source, bad, _AGAIN)
    report.first_of("boxes", source, outside, _AGAIN, fatal=False)
    report.first_of("boxes", source, resized, "extract again, or bring back the pictures it was made from")
