"""A table of Hugging Face's `datasets`: one Parquet file with a row per image.

| column | type |
| --- | --- |
| `id` | text |
| `features` | list of D numbers, float32 or float16, for each of K regions |
| `boxes` | list of four numbers (x1 y1 x2 y2 in pixels) for each region |
| `class_ids`, `attribute_ids` | whole numbers with their names (`ClassLabel`), where the source has names |
| `class_scores`, `attribute_scores`, `box_confidence` | numbers |
| `height`, `width` | whole numbers |

A column that the source lacks is left out. How the features were made is in the file's metadata
(`PROVENANCE`).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_tools.errors import InputError
from data_tools.formats.source import RegionSource
from data_tools.store.schema import Block

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "datasets"
SUFFIX = ".parquet"
PROVENANCE = b"region-features"  # JSON of the provenance, in the metadata of the schema
GROUP_BYTES = 32 << 20  # of features in a group of rows, which is what writing and streaming keep in memory


def write_table(path: Path, source: RegionSource, advance: Callable[[], None]) -> None:
    """Write the images of a source as a table; a group of rows at a time.

    Args:
        path: the file.
        source: the images.
        advance: called after each image.

    Raises:
        InputError: the package `datasets` is not installed, or a class or attribute has an id beyond its names.
    """
    try:
        import datasets
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("the format datasets needs the extra datasets; fix: pip install datasets") from None
    features = _columns(source, datasets)
    schema = features.arrow_schema
    made = json.dumps(source.provenance).encode()
    schema = schema.with_metadata({**(schema.metadata or {}), PROVENANCE: made})
    per_image = int(source.counts.sum()) * source.dim * source.dtype.itemsize // max(len(source.image_ids), 1)
    images, step = len(source.image_ids), max(1, GROUP_BYTES // max(per_image, 1))
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for first in range(0, images, step):
            blocks = []
            for row in range(first, min(first + step, images)):
                blocks.append(source.image(row))
                advance()
            writer.write_table(_table(blocks, schema, features, source))


def _columns(source: RegionSource, datasets: Any) -> Any:
    """The `datasets.Features` of a source."""
    value, several = datasets.Value, datasets.Sequence
    columns = {"id": value("string"), "features": several(several(value(source.dtype.name), length=source.dim))}
    for name in source.region_columns:
        if name == "boxes":
            columns[name] = several(several(value("float32"), length=4))
        elif name.endswith("_ids"):
            names = source.provenance.get(f"{name.removesuffix('_ids')}_names", "").splitlines()
            usable = names and len(set(names)) == len(names)
            columns[name] = several(datasets.ClassLabel(names=names) if usable else value("int32"))
        else:
            columns[name] = several(value("float32"))
    if source.has_image_sizes:
        columns |= {"height": value("int32"), "width": value("int32")}
    return datasets.Features(columns)


def _table(blocks: list[Block], schema: "pa.Schema", features: Any, source: RegionSource) -> "pa.Table":
    """Rows of the table, without a Python object per number."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum([len(block.regions["features"]) for block in blocks])]).astype(
        np.int32
    )
    arrays = [pa.array([block.image_ids[0] for block in blocks])]
    for name in schema.names[1:]:
        if name in ("height", "width"):
            sizes = np.concatenate([block.image_sizes for block in blocks if block.image_sizes is not None])
            arrays.append(pa.array(sizes[:, int(name == "width")]))
            continue
        values = np.concatenate([block.regions[name] for block in blocks])
        names = getattr(features[name].feature, "names", None)
        if names and len(values) and not 0 <= values.min() <= values.max() < len(names):
            raise InputError(f"{source.path}: {name}: {values.max()} is beyond the {len(names)} names")
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        inner = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets), inner).cast(schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=schema)
