"""Where the images of a collection lie.

An index names them by paths relative to its images folder.
"""

from collections.abc import Sequence
from pathlib import Path

from data_tools.layout import IMAGE_FOLDERS, load_id_mapping


def find_images(data: Path, images: Path | None = None) -> tuple[Path | None, dict[str, str]]:
    """The images folder of a dataset, and the file in it of each id that is known.

    Args:
        data: the dataset's folder; its `id_mapping.json` counts if it has one, otherwise file names are ids.
        images: the folder; None looks for `IMAGE_FOLDERS` in `data`.

    Returns:
        The folder, None if there is none, and the files relative to it by id.

    Raises:
        InputError: the mapping is malformed.
    """
    folder = images or next((data / name for name in IMAGE_FOLDERS if (data / name).is_dir()), None)
    if folder is None:
        return None, {}
    mapping = data / "id_mapping.json"
    if mapping.is_file():
        return folder, load_id_mapping(mapping)
    files: dict[str, str] = {}
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        files.setdefault(path.stem, path.as_posix())
    return folder, files


def files_of(image_ids: Sequence[str], known: dict[str, str]) -> list[str]:
    """The file of each image; an empty text where it is not known."""
    return [known.get(image_id, "") for image_id in image_ids]
