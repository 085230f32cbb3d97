"""Parts of what a feature store records about how it was made."""

import hashlib
from importlib.metadata import version

import cv2
import detectron2

from extract.run.sources import Sources

PACKAGES = ("pixels-to-recall", "torch", "torchvision", "numpy", "pillow")


def image_list_sha256(sources: Sources) -> str:
    """SHA-256 of the ids and files of a list of images, in hexadecimal.

    Of the images' folder only the last two names count: its place on the disk may differ between machines.
    """
    folder = "/".join(sources.folder.resolve().parts[-2:])
    listing = "".join(f"{image.image_id}\t{image.file}\n" for image in sources.images)
    return hashlib.sha256(f"{folder}\n{listing}".encode("utf-8", "surrogateescape")).hexdigest()


def software_versions() -> dict[str, str]:
    """Versions of the packages that decide about the bytes of features."""
    installed = {package: version(package) for package in PACKAGES}
    return {**installed, "detectron2": detectron2.__version__, "opencv": cv2.__version__}
