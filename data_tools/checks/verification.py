"""Whether a data folder will train: every check in turn."""

from collections.abc import Mapping
from pathlib import Path

from data_tools.checks.features import check_features
from data_tools.checks.findings import Report
from data_tools.checks.images import check_pictures
from data_tools.checks.splits import check_mapping, check_splits, check_vocabulary, fix_text
from data_tools.errors import InputError
from data_tools.layout import images_folder, precomp_folder


def verify(data: Path, features: Path | None = None, sample: int | None = 1000) -> Report:
    """Check the data set in the folder `data`.

    All ids, captions and numbers are read, and of the pictures `sample`, spread evenly (None: all). A data set
    without a folder of images is checked without pictures.

    Raises:
        InputError: there is no split at all.
    """
    report = Report()
    precomp = precomp_folder(data)
    checked = check_splits(precomp, report)
    mapping = check_mapping(data, checked, precomp, report)
    sizes: Mapping[str, tuple[int, int]] = {}
    try:
        images = images_folder(data)
    except InputError:
        report.facts.append("pictures: no folder of them")
    else:
        if mapping:
            sizes = check_pictures(images, mapping, checked, sample, report)
    check_features(data, precomp, features, checked, mapping, sizes, report)
    check_vocabulary(data, checked, report)
    return report


def fix(report: Report) -> list[Path]:
    """Mend what can be mended without changing what is read: byte-order marks and Windows line ends.

    Returns:
        The files that were written anew.
    """
    files = list(dict.fromkeys(finding.file for finding in report.findings if finding.fixable))
    for file in files:
        fix_text(file)
    return files
