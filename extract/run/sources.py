"""Which images a run reads: those of an `id_mapping.json`, of a list, or all in a folder."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.errors import InputError
from data_tools.files import read_text
from data_tools.layout import IMAGE_FOLDERS, load_id_mapping

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

JUNK_FOLDERS = ("__MACOSX", "@eaDir")  # of archives and of network disks, with copies of the images' names


@dataclass(frozen=True)
class SourceImage:
    """One image of a run.

    Attributes:
        image_id: its id.
        file: relative to the images folder.
        problem: why it is not read; None where it is.
        pixels: (height, width, 3) uint8, RGB, where the image is in memory and no file is read.
    """

    image_id: str
    file: str
    problem: str | None = None
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Sources:
    """The images of a run in the order of the store, and the folder to which their files are relative.

    Attributes:
        folder: that the files are relative to.
        images: the list.
        ignored: how many files of the folder are no images, by ending.
    """

    folder: Path
    images: list[SourceImage]
    ignored: Counter[str] = field(default_factory=Counter)

    def ignored_line(self) -> str:
        """The ignored files in words, the most frequent endings first."""
        kinds = [f"{count} {ending or '(no ending)'}" for ending, count in self.ignored.most_common(5)]
        others = len(self.ignored) - len(kinds)
        more = f" and {others} other endings" if others > 0 else ""
        return f"{self.ignored.total()} files in {self.folder} are not read as images: {', '.join(kinds)}{more}"

    def limited_to(self, wanted: Iterable[str], listing: Path, what: str = "ids") -> "Sources":
        """The images of these ids, in this order; an id without an image is reported as a failure.

        Args:
            wanted: the ids; repeated ones count once.
            listing: where they are from, for messages.
            what: they are there, for messages.

        Raises:
            InputError: no image has one of the ids.
        """
        ids = dict.fromkeys(wanted)
        known = {image.image_id: image for image in reversed(self.images)}  # the first of one id wins
        if not known.keys() & ids.keys():
            raise InputError(f"{listing}: none of its {len(ids)} {what} is the id of an image in {self.folder}")
        unknown = f"no image has this id, which {listing.name} lists"
        images = [known.get(image_id) or SourceImage(image_id, "", unknown) for image_id in ids]
        return Sources(self.folder, images, self.ignored)


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
        InputError: there is no such folder or list, or no image in it, or a file is malformed, or the list names
            no file that exists.
    """
    if images.is_file():
        if id_mapping is not None:
            raise InputError(f"{images}: --id-mapping is for a folder of images; this is a list")
        sources = Sources(images.resolve().parent, _of_list(images))
        _check_some_exist(sources, f"{images}: expected one image file per line")
    elif images.is_dir():
        sources = _of_folder(images, id_mapping)
    else:
        raise InputError(f"{images}: no such folder or list of images")
    if split is None:
        return sources
    wanted = [line.strip() for line in read_text(split).splitlines() if line.strip()]
    if not wanted:
        raise InputError(f"{split}: expected one id per line, found none")
    return sources.limited_to(wanted, split, "lines")


def _of_folder(folder: Path, id_mapping: Path | None) -> Sources:
    mapping = id_mapping or folder.resolve().parent / "id_mapping.json"
    if id_mapping or mapping.is_file():
        named = [SourceImage(image_id, file) for image_id, file in load_id_mapping(mapping).items()]
        sources = Sources(folder, named)
        _check_some_exist(sources, f"{folder}: is not the folder of the images in {mapping}")
        return sources
    ignored: Counter[str] = Counter()
    files = []
    for path in _walk(folder):
        if path.suffix.lower() in ENDINGS:
            files.append(path.relative_to(folder))
        else:
            ignored[path.suffix.lower()] += 1
    sources = Sources(folder, _first_of_each_id((file.stem, file) for file in sorted(files)), ignored)
    if not files:
        why = f"; {sources.ignored_line()}" if ignored else ""
        raise InputError(f"{folder}: found no image file in this folder{why}")
    inner = {file.parts[0] for file in files}
    if len(inner) == 1 and inner <= set(IMAGE_FOLDERS):  # the store would lie beside the dataset, not in it
        raise InputError(
            f"{folder}: is a dataset's folder; fix: give its folder of images, {folder / inner.pop()}"
        )
    return sources


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, through links too, but not in hidden folders nor in those of other programs."""
    above: dict[str, frozenset[str]] = {str(folder): frozenset([os.path.realpath(folder)])}
    for place, folders, names in os.walk(folder, followlinks=True):
        passed = above.pop(place)
        kept = []
        for name in folders:
            inner, real = os.path.join(place, name), os.path.realpath(os.path.join(place, name))
            circle = real in passed  # of links
            if not (circle or name.startswith(".") or name in JUNK_FOLDERS):
                above[inner] = passed | {real}
                kept.append(name)
        folders[:] = kept
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _check_some_exist(sources: Sources, problem: str) -> None:
    """Raise `InputError` where no file of a list exists: it is a list of something else."""
    files = [image.file for image in sources.images]
    if not any((sources.folder / file).exists() or not file.isascii() for file in files):
        raise InputError(f"{problem}; none of {len(files)} files exists, {files[0]!r} for instance")


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
