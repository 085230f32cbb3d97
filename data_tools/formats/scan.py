"""Writing SCAN's arrays: `{split}_ims.npy`, (images, K, D), with `{split}_ids.txt` beside it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_tools.captions.splits import read_ids
from data_tools.errors import InputError
from data_tools.files import replace_file, replacing
from data_tools.formats.source import RegionSource


def write_array(path: Path, source: RegionSource, advance: Callable[[], None]) -> None:
    """Write the features of `source` as one array, and their ids beside it unless that file exists.

    Args:
        path: `{split}_ims.npy`; the ids are in `{split}_ids.txt`, one per line.
        source: N images with K regions each.
        advance: called after each image.

    Raises:
        InputError: there is no image, images have different numbers of regions, or the existing file of ids
            differs.
    """
    if not len(source.counts):
        raise InputError(f"{source.path}: holds no image")
    regions = int(source.counts[0])
    other = np.flatnonzero(source.counts != regions)
    if len(other):
        first, second = source.image_ids[0], source.image_ids[other[0]]
        raise InputError(
            f"{source.path}: an array needs equal numbers of regions; image {first} has {regions}, "
            f"image {second} has {source.counts[other[0]]}"
        )
    ids_file = path.with_name(path.name.removesuffix(".npy").removesuffix("_ims") + "_ids.txt")
    if ids_file.is_file():
        if list(dict.fromkeys(read_ids(ids_file))) != source.image_ids:
            raise InputError(f"{ids_file}: differs from the ids of the array to write; fix: give --ids {ids_file}")
    else:
        replace_file(ids_file, "".join(f"{image_id}\n" for image_id in source.image_ids).encode())
    stored = source.dtype.newbyteorder("<")
    shape = (len(source.image_ids), regions, source.dim)
    with replacing(path) as temporary, temporary.open("wb") as file:
        header = {"descr": stored.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for row in range(shape[0]):
            file.write(source.image(row).regions["features"].astype(stored).tobytes())
            advance()
