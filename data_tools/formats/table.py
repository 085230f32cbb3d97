"""Region features as a table of Hugging Face's `datasets`: a Parquet file with one row per image.

Columns: `image_id`; `features`, a list of K lists of D; `boxes`, a list of K lists of 4; `class_ids` and
`attribute_ids`, with their names where the source has them; `class_scores`, `attribute_scores`; `height`, `width`.
`load_dataset("parquet", data_files=FILE)` and the Hub read it. How the features were made is in the file's
metadata, under the key `provenance`, as JSON.

It needs the extra `datasets`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import InputError
from data_tools.formats.source import RegionSource
from data_tools.store.schema import Block

GROUP = 32  # images that are written, and later read, together: 9.4 MB of 36 x 2,048 float32
_NAMES = {"class_ids": "class_names", "attribute_ids": "attribute_names"}


def write_table(path: Path, source: RegionSource, advance: Callable[[], None]) -> None:
    """Write the images of a source, `GROUP` at a time; `advance` is called after each image.

    Raises:
        InputError: the package `datasets` is not installed.
    """
    try:
        import pyarrow.parquet
        from datasets import Features
    except ImportError:
        raise InputError(
            "the format parquet needs the extra datasets; fix: pip install 'pixels-to-recall[datasets]'"
        ) from None
    schema = Features(_columns(source)).arrow_schema
    provenance = {b"provenance": json.dumps(source.provenance).encode()}
    schema = schema.with_metadata({**schema.metadata, **provenance})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(source.image_ids), GROUP):
            blocks = []
            for row in range(start, min(start + GROUP, len(source.image_ids))):
                blocks.append(source.image(row))
                advance()
            writer.write_batch(pyarrow.record_batch(_arrays(blocks, source), schema=schema))


def _columns(source: RegionSource) -> dict[str, Any]:
    """The type of each column, in the terms of `datasets`."""
    from datasets import ClassLabel, Sequence, Value

    columns: dict[str, Any] = {
        "image_id": Value("string"),
        "features": Sequence(Sequence(Value(source.dtype.name), length=source.dim)),
    }
    for name in source.region_columns:
        names = source.provenance.get(_NAMES.get(name, ""), "").splitlines()
        if name == "boxes":
            columns[name] = Sequence(Sequence(Value("float32"), length=4))
        elif names:
            columns[name] = Sequence(ClassLabel(names=names))
        else:
            columns[name] = Sequence(Value("int32" if name in _NAMES else "float32"))
    if source.has_image_sizes:
        columns |= {"height": Value("int32"), "width": Value("int32")}
    return columns


def _arrays(blocks: list[Block], source: RegionSource) -> dict[str, Any]:
    """The columns of some images, without a Python object per number."""
    import pyarrow

    offsets = np.concatenate([[0], np.cumsum([len(block.regions["features"]) for block in blocks])])
    arrays: dict[str, Any] = {"image_id": [block.image_ids[0] for block in blocks]}
    for name in ("features", *source.region_columns):
        values = np.concatenate([block.regions[name] for block in blocks])
        items = pyarrow.array(values.ravel())
        if values.ndim == 2:
            items = pyarrow.FixedSizeListArray.from_arrays(items, values.shape[1])
        elif source.provenance.get(_NAMES.get(name, "")):
            items = items.cast(pyarrow.int64())  # as `ClassLabel` is stored
        arrays[name] = pyarrow.ListArray.from_arrays(offsets.astype(np.int32), items)
    if source.has_image_sizes:
        sizes = np.concatenate([block.image_sizes for block in blocks if block.image_sizes is not None])
        arrays |= {"height": sizes[:, 0], "width": sizes[:, 1]}
    return arrays
