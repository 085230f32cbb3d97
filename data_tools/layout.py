"""Where things lie in a data set's folder: the layout of CHAN, VSE-infinity and SCAN.

DATA/id_mapping.json           {"id": "file relative to the images folder"}
DATA/images/ or DATA/flickr30k-images/
DATA/precomp/                  {split}_ids.txt, {split}_caps.txt, features.h5 or {split}_ims.npy
DATA/vocab.json                or DATA/../vocab/{coco,f30k}_precomp_vocab.json
"""

from pathlib import Path

from data_tools.errors import InputError, UsageError
from data_tools.files import read_json

IMAGE_FOLDERS = ("images", "flickr30k-images")
STORE_NAME = "features.h5"


def precomp_folder(data: Path) -> Path:
    """The folder of a data set's split files: `DATA/precomp`, or DATA itself where they lie in it."""
    for folder in (data / "precomp", data):
        if any(folder.glob("*_ids.txt")):
            return folder
    raise InputError(f"{data}: found no split (*_ids.txt) there or in its precomp folder")


def images_folder(data: Path) -> Path:
    """The folder of a data set's images."""
    for name in IMAGE_FOLDERS:
        if (data / name).is_dir():
            return data / name
    raise InputError(f"{data}: expected a folder {' or '.join(IMAGE_FOLDERS)} in it")


def feature_source(data: Path, split: str, features: Path | None = None) -> Path:
    """The file that holds a split's region features: an HDF5 store or SCAN's `{split}_ims.npy`.

    `features` names it: a store, a `.npy` file, or a folder that holds either. Without it the data set's
    precomp folder is searched.

    Raises:
        UsageError: a store and a `.npy` both lie in the folder.
        InputError: there is neither.
    """
    folder = precomp_folder(data) if features is None else features
    if not folder.is_dir():
        if not folder.exists():
            raise InputError(f"{folder}: no such features file or folder")
        return folder
    found = [path for path in (folder / STORE_NAME, folder / f"{split}_ims.npy") if path.is_file()]
    if not found:
        raise InputError(f"{folder}: found neither {STORE_NAME} nor {split}_ims.npy there")
    if len(found) > 1:
        raise UsageError(f"{folder}: holds both {found[0].name} and {found[1].name}; --features must say which")
    return found[0]


def find_vocabulary(data: Path) -> Path | None:
    """The vocabulary file that belongs to a data set, or None where there is none to be found."""
    published = data.resolve().parent / "vocab" / f"{data.resolve().name}_precomp_vocab.json"
    for candidate in (data / "vocab.json", published):
        if candidate.is_file():
            return candidate
    return None


def load_id_mapping(path: Path) -> dict[str, str]:
    """Read `id_mapping.json`: image ids to files relative to the images folder.

    Raises:
        InputError: the file is absent, no JSON object of strings, has an id twice, or names a file outside
            the folder.
    """
    document = read_json(path, unique_keys=True)
    if not isinstance(document, dict) or not document:
        raise InputError(f'{path}: expected an object {{"id": "file", ...}} with at least one entry')
    for image_id, file in document.items():
        if not image_id or image_id != image_id.strip() or not image_id.isprintable():
            raise InputError(f"{path}: id {image_id!r}: expected printable characters, no space around them")
        if not isinstance(file, str) or not file or Path(file).is_absolute() or ".." in Path(file).parts:
            raise InputError(f"{path}: id {image_id}: expected a file name relative to the images folder")
    return document
