"""Which images a run reads: those of an `id_mapping.json`, or all that lie in a folder."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import InputError
from data_tools.layout import load_id_mapping

ENDINGS = {
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".avif",
}


@dataclass(frozen=True)
class SourceImage:
    """One image of a run: its id, its file relative to the images folder, and why it is not read, if so."""

    image_id: str
    file: str
    problem: str | None = None


def find_images(folder: Path, id_mapping: Path | None = None) -> list[SourceImage]:
    """The images of a run, in the order in which they are stored.

    With an id mapping, given or found beside the folder, its entries in its order. Otherwise every picture in
    the folder and the folders in it, by path; file names without their ending are the ids, and of files
    with one id the first is read.

    Raises:
        InputError: the folder is absent or holds no picture, or the mapping is malformed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    mapping = id_mapping or folder.resolve().parent / "id_mapping.json"
    if id_mapping or mapping.is_file():
        return [SourceImage(image_id, file) for image_id, file in load_id_mapping(mapping).items()]
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    files = sorted(path.relative_to(folder) for path in found)
    if not files:
        raise InputError(f"{folder}: found no picture there")
    first_of: dict[str, Path] = {}
    for file in files:
        first_of.setdefault(file.stem, file)
    seen: defaultdict[str, int] = defaultdict(int)
    images = []
    for file in files:
        seen[file.stem] += 1
        problem = f"its id is taken by {first_of[file.stem]}" if seen[file.stem] > 1 else None
        if not str(file).isprintable():
            problem = "its name has characters that an id cannot have"
        images.append(SourceImage(_printable(file.stem), _printable(file.as_posix()), problem))
    return images


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)
