"""Which images a run reads: those of an `id_mapping.json`, of a list, or all in a folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import InputError
from data_tools.files import read_text
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
    """One image of a run.

    Attributes:
        image_id: its id.
        file: relative to the images folder.
        problem: why it is not read; None where it is.
    """

    image_id: str
    file: str
    problem: str | None = None


@dataclass(frozen=True)
class Sources:
    """The images of a run in the order of the store, and the folder to which their files are relative."""

    folder: Path
    images: list[SourceImage]


def find_sources(images: Path, id_mapping: Path | None = None, split: Path | None = None) -> Sources:
    """The images of a folder or list.

    A folder with an id mapping, given or found beside it, has the mapping's images in the mapping's order. A
    folder without one has all image files in it and its subfolders, ordered by path. A text file lists one image
    per line, relative to the file's folder or absolute; a line may also be an id, a tab and an image. Without a
    mapping the ids are the file names without their endings; of several images with one id the first is read.

    Args:
        images: the folder or list.
        id_mapping: `{"id": "file relative to the folder"}`.
        split: a text file of ids, one per line, to which the run is limited; repeated lines count once.

    Raises:
        InputError: there is no such folder or list, or no image in it, or a file is malformed.
    """
    if images.is_file():
        if id_mapping is not None:
            raise InputError(f"{images}: --id-mapping is for a folder of images; this is a list")
        sources = Sources(images.resolve().parent, _of_list(images))
    elif images.is_dir():
        sources = Sources(images, _of_folder(images, id_mapping))
    else:
        raise InputError(f"{images}: no such folder or list of images")
    return sources if split is None else Sources(sources.folder, _limited(sources.images, split))


def _of_folder(folder: Path, id_mapping: Path | None) -> list[SourceImage]:
    mapping = id_mapping or folder.resolve().parent / "id_mapping.json"
    if id_mapping or mapping.is_file():
        return [SourceImage(image_id, file) for image_id, file in load_id_mapping(mapping).items()]
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    files = sorted(path.relative_to(folder) for path in found)
    if not files:
        raise InputError(f"{folder}: found no image file in this folder")
    return _first_of_each_id((file.stem, file) for file in files)


def _of_list(path: Path) -> list[SourceImage]:
    lines = [line.strip() for line in read_text(path).splitlines()]
    entries = [[field.strip() for field in line.split("\t")] for line in lines if line]
    if not entries:
        raise InputError(f"{path}: the list is empty")
    for entry in entries:
        if len(entry) > 2 or not all(entry):
            raise InputError(f"{path}: {entry[0]}: expected an image file, or an id, a tab and an image file")
    return _first_of_each_id(
        (entry[0] if len(entry) == 2 else Path(entry[0]).stem, Path(entry[-1])) for entry in entries
    )


def _first_of_each_id(entries: Iterable[tuple[str, Path]]) -> list[SourceImage]:
    first_of: dict[str, Path] = {}
    images = []
    for image_id, file in entries:
        first = first_of.setdefault(image_id, file)
        problem = None if first is file else f"its id is the same as that of {first}, which is read"
        if not (str(file) + image_id).isprintable():
            problem = "its name has characters that an id cannot have"
        images.append(SourceImage(_printable(image_id), _printable(file.as_posix()), problem))
    return images


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _limited(images: list[SourceImage], split: Path) -> list[SourceImage]:
    """The images of the ids in a file, in its order; an id without an image is reported as a failure."""
    wanted = dict.fromkeys(line.strip() for line in read_text(split).splitlines() if line.strip())
    if not wanted:
        raise InputError(f"{split}: expected one id per line, found none")
    known = {image.image_id: image for image in reversed(images)}  # the first of one id wins
    unknown = f"no image has this id, which {split.name} lists"
    return [known.get(image_id) or SourceImage(image_id, "", unknown) for image_id in wanted]
