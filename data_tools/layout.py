"""The folder of a dataset in the layout of CHAN, VSE-infinity and SCAN.

DATA/id_mapping.json           {"id": "file relative to the images folder"}
DATA/images/ or DATA/flickr30k-images/
DATA/precomp/                  {split}_ids.txt, {split}_caps.txt, features.h5 or {split}_ims.npy
DATA/vocab.json                or DATA/../vocab/{coco,f30k}_precomp_vocab.json
"""

from pathlib import Path

from data_tools.errors import InputError, UsageError
from data_tools.files import is_inside, read_json

IMAGE_FOLDERS = ("images", "flickr30k-images")
STORE_NAME = "features.h5"


def precomp_folder(data: Path) -> Path:
    """The folder of a dataset's split files: `DATA/precomp`, or DATA itself; `InputError` if it has none."""
    for folder in (data / "precomp", data):
        if any(folder.glob("*_ids.txt")):
            return folder
    raise InputError(
        f"{data}: holds no split (*_ids.txt), nor does {data / 'precomp'}; fix: run data-tools splits"
    )


def images_folder(data: Path) -> Path:
    """The folder of a dataset's images, the first of `IMAGE_FOLDERS`; `InputError` if there is none."""
    for name in IMAGE_FOLDERS:
        if (data / name).is_dir():
            return data / name
    raise InputError(f"{data}: holds no folder {' or '.join(IMAGE_FOLDERS)}")


def feature_source(data: Path, split: str, features: Path | None = None) -> Path:
    """The file with a split's region features: an HDF5 store or SCAN's `{split}_ims.npy`.

    Args:
        data: the folder of the dataset.
        split: the name of the split.
        features: a store, a `.npy` file, or a folder that holds either; None is the dataset's precomp folder.

    Raises:
        UsageError: the folder holds a store and a `.npy` file.
        InputError: the folder holds neither, or `features` does not exist.
    """
    folder = precomp_folder(data) if features is None else features
    if not folder.is_dir():
        if not folder.exists():
            raise InputError(f"{folder}: no such features file or folder")
        return folder
    found = [path for path in (folder / STORE_NAME, folder / f"{split}_ims.npy") if path.is_file()]
    if not found:
        raise InputError(f"{folder}: holds neither {STORE_NAME} nor {split}_ims.npy")
    if len(found) > 1:
        raise UsageError(
            f"{folder}: holds both {found[0].name} and {found[1].name}; fix: name one with --features"
        )
    return found[0]


def find_vocabulary(data: Path) -> Path | None:
    """The vocabulary file of a dataset: `DATA/vocab.json`, SCAN's published file, or None."""
    published = data.resolve().parent / "vocab" / f"{data.resolve().name}_precomp_vocab.json"
    for candidate in (data / "vocab.json", published):
        if candidate.is_file():
            return candidate
    return None


def load_id_mapping(path: Path) -> dict[str, str]:
    """Read `id_mapping.json`.

    Returns:
        The file of each image, relative to the images folder, by image id, in the order of the document.

    Raises:
        InputError: the file is missing or not a JSON object of strings, repeats an id, or names a file outside the
            images folder.
    """
    document = read_json(path, unique_keys=True)
    if not isinstance(document, dict) or not document:
        raise InputError(f'{path}: expected an object {{"id": "file", ...}} with at least one entry')
    for image_id, file in document.items():
        if not is_image_id(image_id):
            raise InputError(f"{path}: id {image_id!r}: expected printable characters without space around them")
        if not isinstance(file, str) or not is_inside(file) or not _is_file_name(file):
            raise InputError(f"{path}: id {image_id}: expected a file relative to the images folder")
    return document


def is_image_id(text: str) -> bool:
    """Whether a text can be an image id: one line of an ids file, printable, without space around it.

    >>> is_image_id("42"), is_image_id(" 42"), is_image_id("4\\n2"), is_image_id("")
    (True, False, False, False)
    """
    return text != "" and text == text.strip() and text.isprintable()


def _is_file_name(text: str) -> bool:
    """Whether the operating system can take a text as a path: JSON can write a NUL and halves of characters."""
    return "\0" not in text and text.encode("utf-8", "replace").decode() == text
