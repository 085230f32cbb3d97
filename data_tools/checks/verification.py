"""Checks whether a data folder is ready for training."""

from collections.abc import Mapping
from pathlib import Path

from data_tools.checks.features import check_features
from data_tools.checks.findings import Report
from data_tools.checks.images import check_images
from data_tools.checks.splits import check_mapping, check_splits, check_vocabulary, fix_text
from data_tools.errors import InputError
from data_tools.layout import images_folder, precomp_folder


def verify(data: Path, features: Path | None = None, sample: int | None = 1000) -> Report:
    """Check the dataset in the folder `data`.

    All ids, captions and features are read. A dataset without an images folder is checked without its images.

    Args:
        data: the folder of the dataset.
        features: a features file or folder elsewhere; None uses those in `data`.
        sample: number of images to decode, spread evenly; None decodes all.

    Raises:
        InputError: the folder has no split.
    """
    report = Report()
    precomp = precomp_folder(data)
    checked = check_splits(precomp, report)
    mapping = check_mapping(data, checked, precomp, report)
    sizes: Mapping[str, tuple[int, int]] = {}
    try:
        images = images_folder(data)
    except InputError:
        report.facts.append("images: no images folder")
    else:
        if mapping:
            sizes = check_images(images, mapping, checked, sample, report)
    check_features(data, precomp, features, checked, mapping, sizes, report)
    check_vocabulary(data, checked, report)
    return report


def fix_files(report: Report) -> list[Path]:
    """Remove the byte-order marks and Windows line ends that `report` found; no text that is read changes.

    Returns:
        The files that were rewritten.
    """
    files = list(dict.fromkeys(finding.file for finding in report.findings if finding.fixable))
    for file in files:
        fix_text(file)
    return files
