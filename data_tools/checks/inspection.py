"""Looking into a feature store: what it says of itself, what is in it, and its regions on a picture."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.detection.labels import Labels
from data_tools.errors import InputError
from data_tools.images.decoding import find_image_file, read_picture
from data_tools.images.drawing import draw_regions
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import FORMAT, FORMAT_VERSION

SHOWN_ROWS = 3


@dataclass(frozen=True)
class Statistics:
    """Of the features of some images; numbers that are not finite are counted and left out of the rest."""

    images: int
    mean: float
    deviation: float
    least: float
    most: float
    zeros: float  # share of numbers that are 0
    norm: float  # mean Euclidean norm of a region
    not_finite: int  # regions with a NaN or an infinity
    all_zero: int  # regions of nothing but zeros


def describe(store: FeatureStore, sample: int | None = 1000) -> dict[str, Any]:
    """Everything that `data-tools inspect` prints, as plain data; statistics of `sample` images, None is all."""
    counts, whole = store.counts, store.shape
    data_sets = {
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
        "images": whole.images,
        "regions": whole.regions,
        "dim": whole.dim,
        "regions_per_image": {
            "least": int(counts.min()) if len(counts) else 0,
            "mean": float(counts.mean()) if len(counts) else 0.0,
            "most": int(counts.max(initial=0)),
        },
        "data_sets": data_sets,
        "provenance": store.provenance,
        "failures": list(store.failures),
        "statistics": asdict(statistics(store, sample)) if whole.regions and whole.dim else None,
        "rows": [_row(store, row) for row in range(min(SHOWN_ROWS, whole.images))],
    }


def statistics(store: FeatureStore, sample: int | None) -> Statistics:
    """Of `sample` images spread evenly over the store, or of all."""
    images = len(store)
    rows = np.arange(images)
    if sample is not None and sample < images:
        rows = np.linspace(0, images - 1, sample).astype(np.int64)
    total = squares = norms = 0.0
    numbers = zeros = regions = not_finite = all_zero = 0
    least, most = np.inf, -np.inf
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
        least, most = min(least, float(features.min())), max(most, float(features.max()))
    if not numbers:
        nan = float("nan")
        return Statistics(len(rows), nan, nan, nan, nan, nan, nan, not_finite, all_zero)
    mean = total / numbers
    deviation = max(squares / numbers - mean**2, 0.0) ** 0.5
    return Statistics(
        len(rows), mean, deviation, least, most, zeros / numbers, norms / regions, not_finite, all_zero
    )


def region_labels(store: FeatureStore, row: int, labels: Labels | None = None) -> list[str]:
    """A line for each region of an image: attribute, class and score, as far as the store has them.

    Names come from `labels`, else from the store (`class_names`, `attribute_names`), else they are numbers.
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
    """The picture of an image with the store's boxes, labelled.

    Raises:
        InputError: the store has no such image or no boxes, the picture is absent or damaged, or it has another
            size than the one whose regions are stored.
    """
    row = int(store.rows([image_id])[0])
    boxes = store.boxes(row)
    if boxes is None:
        raise InputError(f"{store.path}: holds no boxes to draw")
    if not np.isfinite(boxes).all():
        raise InputError(f"{store.path}: image {image_id}: a box is NaN or Inf")
    path = find_image_file(image_id, images)
    picture = read_picture(path)
    sizes = store.block(range(row, row + 1), features=False).image_sizes
    if sizes is not None and tuple(sizes[0]) != picture.shape[:2]:
        raise InputError(
            f"{path}: is {picture.shape[1]} x {picture.shape[0]} pixels; {store.path} was made from one of "
            f"{sizes[0, 1]} x {sizes[0, 0]}"
        )
    return draw_regions(picture, boxes, region_labels(store, row, labels))


def as_text(described: dict[str, Any]) -> str:
    """The description for the console."""
    counts = described["regions_per_image"]
    lines = [
        f"{described['file']}: {described['format']}, {described['bytes'] / 1e6:.1f} MB",
        f"  {described['images']} images, {described['regions']} regions "
        f"({counts['least']} to {counts['most']} an image, {counts['mean']:.1f} on average)",
    ]
    lines += [f"  features in {source}" for source in described["virtual_sources"]]
    lines += ["", f"{'data set':18}{'shape':16}{'type':10}{'MB':>10}"]
    for name, entry in described["data_sets"].items():
        shape = " x ".join(map(str, entry["shape"]))
        lines.append(f"{name:18}{shape:16}{entry['type']:10}{entry['bytes'] / 1e6:>10.2f}")
    lines += ["", "provenance"]
    lines += [f"  {name:20}{_brief(text)}" for name, text in described["provenance"].items()] or ["  none"]
    if described["failures"]:
        first = described["failures"][0]
        lines.append(f"  {len(described['failures'])} images could not be stored, the first: {first}")
    found = described["statistics"]
    if found:
        lines += [
            "",
            f"features of {found['images']} images: mean {found['mean']:.4g}, deviation {found['deviation']:.4g}, "
            f"{found['least']:.4g} to {found['most']:.4g}, {found['zeros']:.1%} zeros, "
            f"norm of a region {found['norm']:.4g}",
            f"  {found['not_finite']} regions with NaN or Inf, {found['all_zero']} of zeros only",
        ]
    lines += [
        "",
        *(f"{row['id']}: {row['regions']} regions{row['size']}; {row['first']}" for row in described["rows"]),
    ]
    return "\n".join(lines)


def _brief(text: str) -> str:
    """The first line of a text, and how many more there are."""
    lines = text.splitlines() or [""]
    return lines[0][:80] + (f" ... ({len(lines)} lines)" if len(lines) > 1 else "")


def _row(store: FeatureStore, row: int) -> dict[str, Any]:
    block = store.block(range(row, row + 1))
    size = "" if block.image_sizes is None else f" of {block.image_sizes[0, 1]} x {block.image_sizes[0, 0]} pixels"
    first = "no region"
    if block.counts[0]:
        numbers = ", ".join(f"{value:.4g}" for value in block.regions["features"][0, :4])
        box = (
            " at " + ", ".join(f"{edge:.1f}" for edge in block.regions["boxes"][0])
            if "boxes" in block.regions
            else ""
        )
        first = f"first region: {region_labels(store, row)[0]}{box}: {numbers}, ..."
    return {"id": block.image_ids[0], "regions": int(block.counts[0]), "size": size, "first": first}
