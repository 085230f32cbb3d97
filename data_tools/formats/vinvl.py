"""Writing region features as Oscar's and VinVL's TSVs, each with the index file that their readers need.

`data_tools/formats/vinvl_rows.py` says what the rows hold.
"""

import base64
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import UsageError
from data_tools.files import replacing
from data_tools.formats.source import RegionSource
from data_tools.formats.tsv_rows import check_tsv_id
from data_tools.store.schema import Block

OSCAR, VINVL = "oscar", "vinvl"
NEEDS = {OSCAR: ("boxes", "image_sizes"), VINVL: ("boxes",)}
CONTENT = {OSCAR: {"boxes", "image_sizes"}, VINVL: {"boxes", "class_scores", "image_sizes"}}


def write_vinvl(path: Path, source: RegionSource, kind: str, advance: Callable[[], None]) -> None:
    """Write the images of `source` as rows of one of the two kinds, and beside them the byte at which each begins.

    The index of `a.feature.tsv` is `a.feature.lineidx`.

    Args:
        path: the TSV.
        source: the images, see `NEEDS`; class scores and image sizes are written where it has them.
        kind: `OSCAR` for features that end in their boxes, `VINVL` for a list of objects.
        advance: called after each image.

    Raises:
        UsageError: the source lacks what the rows need.
        InputError: an id holds a tab or a line break, or the disk is full.
    """
    has = {*source.region_columns, *(["image_sizes"] if source.has_image_sizes else [])}
    missing = [name for name in NEEDS[kind] if name not in has]
    if missing:
        raise UsageError(f"{source.path}: lacks {', '.join(missing)}, which a TSV of the format {kind} needs")
    document_of = _features if kind == OSCAR else _objects
    with ExitStack() as stack:
        rows = stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
        index = stack.enter_context(stack.enter_context(replacing(path.with_suffix(".lineidx"))).open("wb"))
        for image in range(len(source.image_ids)):
            block = source.image(image)
            check_tsv_id(source.path, block.image_ids[0])
            index.write(f"{rows.tell()}\n".encode())
            rows.write(f"{block.image_ids[0]}\t{json.dumps(document_of(block))}\n".encode())
            advance()


def _features(block: Block) -> dict[str, Any]:
    assert block.image_sizes is not None
    boxes = block.regions["boxes"].astype(np.float64) / np.tile(block.image_sizes[0, ::-1], 2)
    content = np.hstack([block.regions["features"], boxes, boxes[:, 2:] - boxes[:, :2]])
    return {"num_boxes": int(block.counts[0]), **_size(block), "features": _base64(content)}


def _objects(block: Block) -> dict[str, Any]:
    regions = block.regions
    objects: list[dict[str, Any]] = [
        {"rect": box, "bbox_id": number} for number, box in enumerate(regions["boxes"].tolist())
    ]
    for number, entry in enumerate(objects):
        if "class_scores" in regions:
            entry["conf"] = float(regions["class_scores"][number])
        entry["feature"] = _base64(regions["features"][number])
    return {"objects": objects, **_size(block)}


def _size(block: Block) -> dict[str, int]:
    if block.image_sizes is None:
        return {}
    return {"image_h": int(block.image_sizes[0, 0]), "image_w": int(block.image_sizes[0, 1])}


def _base64(numbers: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers, dtype="<f4").tobytes()).decode()
