"""Inspecting a feature store: its content, provenance and statistics, and its regions drawn on an image."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.detection.labels import Labels
from data_tools.errors import InputError
from data_tools.images.decoding import find_image_file, read_image
from data_tools.images.drawing import draw_regions
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import FORMAT, FORMAT_VERSION, known_boxes

SHOWN_ROWS = 3


@dataclass(frozen=True)
class Statistics:
    """Statistics of region features. Regions with NaN or Inf are counted in `not_finite` and left out of the rest.

    Attributes:
        images: number of images that were read.
        mean, std, min, max: of all numbers.
        zeros: fraction of numbers that are 0.
        norm: mean Euclidean norm of a region.
        not_finite: regions with a NaN or an infinity.
        all_zero: regions of zeros only.
    """

    images: int
    mean: float
    std: float
    min: float
    max: float
    zeros: float
    norm: float
    not_finite: int
    all_zero: int


def inspect_store(store: FeatureStore, sample: int | None = 1000) -> dict[str, Any]:
    """Everything that `data-tools inspect` prints, as plain data.

    Args:
        store: the opened store.
        sample: number of images that the statistics are taken from, spread evenly; None takes all.
    """
    counts, schema = store.counts, store.schema
    datasets = {
        name: {
            "shape": list(shape),
            "type": "text" if dtype.kind in "OS" else str(dtype),
            "bytes": math.prod(shape) * dtype.itemsize,
        }
        for name, (shape, dtype) in store.datasets.items()
    }
    return {
        "file": str(store.path),
        "bytes": store.path.stat().st_size,
        "format": f"{FORMAT} {FORMAT_VERSION}",
        "virtual_sources": [str(source) for source in store.sources],
        "images": schema.images,
        "regions": schema.regions,
        "dim": schema.dim,
        "regions_per_image": {
            "min": int(counts.min()) if len(counts) else 0,
            "mean": float(counts.mean()) if len(counts) else 0.0,
            "max": int(counts.max(initial=0)),
        },
        "datasets": datasets,
        "provenance": store.provenance,
        "failures": list(store.failures),
        "statistics": asdict(statistics(store, sample)) if schema.regions and schema.dim else None,
        "rows": [_row(store, row) for row in range(min(SHOWN_ROWS, schema.images))],
    }


def statistics(store: FeatureStore, sample: int | None) -> Statistics:
    """Statistics of the features of `sample` images, spread evenly over the store; None takes all images."""
    images = len(store)
    rows = np.arange(images)
    if sample is not None and sample < images:
        rows = np.linspace(0, images - 1, sample).astype(np.int64)
    total = squares = norms = 0.0
    numbers = zeros = regions = not_finite = all_zero = 0
    low, high = np.inf, -np.inf
    for row in rows:
        features = store.read(int(row)).astype(np.float64)
        finite = np.isfinite(features).all(axis=1)
        not_finite += int((~finite).sum())
        features = features[finite]
        if not features.size:
            continue
        numbers, regions = numbers + features.size, regions + len(features)
        total, squares = total + float(features.sum()), squares + float((features**2).sum())
        norms += float(np.linalg.norm(features, axis=1).sum())
        zeros += int((features == 0).sum())
        all_zero += int((features == 0).all(axis=1).sum())
        low, high = min(low, float(features.min())), max(high, float(features.max()))
    if not numbers:
        nan = float("nan")
        return Statistics(len(rows), nan, nan, nan, nan, nan, nan, not_finite, all_zero)
    mean = total / numbers
    std = max(squares / numbers - mean**2, 0.0) ** 0.5
    return Statistics(len(rows), mean, std, low, high, zeros / numbers, norms / regions, not_finite, all_zero)


def region_labels(store: FeatureStore, row: int, labels: Labels | None = None) -> list[str]:
    """One label per region of an image: attribute, class and score, as far as the store has them.

    Args:
        store: the opened store.
        row: the image.
        labels: names of classes and attributes; None uses those of the store (`class_names`, `attribute_names`).
            A class or attribute without a name is shown by its number.
    """
    columns = store.block(range(row, row + 1), features=False).regions
    known = {name: store.provenance.get(f"{name}_names", "").splitlines() for name in ("class", "attribute")}
    if labels:
        known = {"class": labels.classes, "attribute": labels.attributes}
    lines = []
    for region in range(int(store.counts[row])):
        words = []
        for kind in ("attribute", "class"):
            if f"{kind}_ids" in columns:
                number = int(columns[f"{kind}_ids"][region])
                names = known[kind]
                words.append(names[number] if 0 <= number < len(names) else f"{kind} {number}")
        if "class_scores" in columns:
            words.append(f"{columns['class_scores'][region]:.2f}")
        lines.append(" ".join(words) or f"region {region}")
    return lines


def draw_image(store: FeatureStore, image_id: str, images: Path, labels: Labels | None = None) -> Image.Image:
    """Draw the regions of one image on it, with labels; those without a box are left out.

    Args:
        store: the opened store; it needs boxes.
        image_id: the image.
        images: the images folder, see `find_image_file`.
        labels: names of classes and attributes; None uses those of the store.

    Raises:
        InputError: the store lacks the image or boxes, a box is not finite, or the image file is missing, damaged
            or of another size than the extracted image.
    """
    row = int(store.rows([image_id])[0])
    boxes = store.boxes(row)
    if boxes is None:
        raise InputError(f"{store.path}: holds no boxes")
    columns = store.block(range(row, row + 1), features=False).regions
    if not np.isfinite(columns["boxes"]).all():
        raise InputError(f"{store.path}: image {image_id}: a box is NaN or Inf")
    known = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    path = find_image_file(image_id, images)
    image = read_image(path)
    sizes = store.block(range(row, row + 1), features=False).image_sizes
    if sizes is not None and tuple(sizes[0]) != image.shape[:2]:
        raise InputError(
            f"{path}: {image.shape[1]} x {image.shape[0]} pixels, but its regions in {store.path} were extracted "
            f"at {sizes[0, 1]} x {sizes[0, 0]}"
        )
    names = region_labels(store, row, labels)
    return draw_regions(image, boxes[known], [names[region] for region in known.tolist()])


def as_text(inspected: dict[str, Any]) -> str:
    """The result of `inspect_store` as text for a terminal."""
    counts = inspected["regions_per_image"]
    lines = [
        f"{inspected['file']}: {inspected['format']}, {inspected['bytes'] / 1e6:.1f} MB",
        f"  {inspected['images']} images, {inspected['regions']} regions "
        f"({counts['min']} to {counts['max']} per image, {counts['mean']:.1f} on average)",
    ]
    lines += [f"  features in {source}" for source in inspected["virtual_sources"]]
    lines += ["", f"{'dataset':18}{'shape':16}{'type':10}{'MB':>10}"]
    for name, entry in inspected["datasets"].items():
        shape = " x ".join(map(str, entry["shape"]))
        lines.append(f"{name:18}{shape:16}{entry['type']:10}{entry['bytes'] / 1e6:>10.2f}")
    lines += ["", "provenance"]
    lines += [f"  {name:20}{_brief(text)}" for name, text in inspected["provenance"].items()] or ["  none"]
    if inspected["failures"]:
        first = inspected["failures"][0]
        lines.append(f"  {len(inspected['failures'])} images could not be extracted, for instance {first}")
    found = inspected["statistics"]
    if found:
        lines += [
            "",
            f"features of {found['images']} images: mean {found['mean']:.4g}, std {found['std']:.4g}, "
            f"{found['min']:.4g} to {found['max']:.4g}, {found['zeros']:.1%} zeros, "
            f"mean norm of a region {found['norm']:.4g}",
            f"  {found['not_finite']} regions with NaN or Inf, {found['all_zero']} of zeros only",
        ]
    lines += [
        "",
        *(f"{row['id']}: {row['regions']} regions{row['size']}; {row['first']}" for row in inspected["rows"]),
    ]
    return "\n".join(lines)


def _brief(text: str) -> str:
    """The first line of a text, and how many lines it has if there are more."""
    lines = text.splitlines() or [""]
    return lines[0][:80] + (f" ... ({len(lines)} lines)" if len(lines) > 1 else "")


def _row(store: FeatureStore, row: int) -> dict[str, Any]:
    block = store.block(range(row, row + 1))
    size = "" if block.image_sizes is None else f" of {block.image_sizes[0, 1]} x {block.image_sizes[0, 0]} pixels"
    first = "no region"
    if block.counts[0]:
        numbers = ", ".join(f"{value:.4g}" for value in block.regions["features"][0, :4])
        boxes = known_boxes(block.regions)
        box = ""
        if boxes is not None:
            edges = ", ".join(f"{edge:.1f}" for edge in boxes[0])
            box = " without a box" if np.isnan(boxes[0]).any() else f" at {edges}"
        first = f"first region: {region_labels(store, row)[0]}{box}: {numbers}, ..."
    return {"id": block.image_ids[0], "regions": int(block.counts[0]), "size": size, "first": first}
