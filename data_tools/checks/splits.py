"""Checks of split files, id mapping and vocabulary."""

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from data_tools.captions.collection import COCO_TEST
from data_tools.captions.splits import Split, load_split
from data_tools.captions.vocabulary import Vocabulary, count_words
from data_tools.checks.findings import Case, Report
from data_tools.errors import InputError
from data_tools.files import read_text, replace_file
from data_tools.layout import find_vocabulary, load_id_mapping

NEEDED = ("train", "dev")  # `chan train` reads both
FEW_CAPTIONS = 2000  # for training: an epoch of the large recipes is then one to fifteen steps
FEW_IMAGES = 100  # for validation: one image more or less moves R@1 by a percent
MIN_COVERAGE = 0.8  # fraction of the words of the training captions; the published vocabularies have 0.98
COVERAGE_SAMPLE = 5000  # captions; tokenizing all of COCO's takes minutes
_MARK = b"\xef\xbb\xbf"


@dataclass
class CheckedSplits:
    """The splits that could be read.

    Attributes:
        splits: by name.
        lines: for each split, the number of the first line that names an image, by image id.
    """

    splits: dict[str, Split] = field(default_factory=dict)
    lines: dict[str, dict[str, int]] = field(default_factory=dict)


def check_splits(precomp: Path, report: Report) -> CheckedSplits:
    """Check every split of the folder: its files, the number of its captions, and images that splits share."""
    checked = CheckedSplits()
    names = sorted(path.name.removesuffix("_ids.txt") for path in precomp.glob("*_ids.txt"))
    for name in NEEDED:
        if name not in names:
            file = precomp / f"{name}_ids.txt"
            report.add("splits", file, [(None, "no such file; training needs it")], "run data-tools splits")
    for name in names:
        _check_split(precomp, name, report, checked)
    _check_shared(precomp, report, checked)
    _check_sizes(precomp, report, checked)
    for name, split in checked.splits.items():
        report.facts.append(f"{name}: {len(split.image_ids)} images, {len(split.captions)} captions")
    return checked


def _check_split(precomp: Path, name: str, report: Report, checked: CheckedSplits) -> None:
    files = [precomp / f"{name}_{kind}.txt" for kind in ("ids", "caps", "capids")]
    if not all([_check_text(file, report) for file in files if file.is_file()]):  # noqa: C419 - check each
        return
    try:
        split = load_split(precomp, name)
    except InputError as error:
        report.add(
            "captions",
            files[1],
            [(None, _without(error, precomp))],
            "write the split again with data-tools splits",
        )
        return
    checked.splits[name] = split
    ids = [line.strip() for line in read_text(files[0]).rstrip().splitlines()]
    checked.lines[name] = {}
    for line, image_id in enumerate(ids, start=1):
        checked.lines[name].setdefault(image_id, line)
    repeated = [
        (line, f"image {image_id} is on line {checked.lines[name][image_id]} too")
        for line, image_id in enumerate(ids, start=1)
        if checked.lines[name][image_id] != line
    ]
    if len(ids) != len(split.captions):
        report.add("duplicates", files[0], repeated, "remove the repeated line and its five captions")
    elif repeated:
        separate = [case for case in repeated if ids[case[0] - 1] != ids[case[0] - 2]]
        report.add("duplicates", files[0], separate, "put the captions of an image on consecutive lines")
    empty = [(line, "the caption is empty") for line, text in enumerate(split.captions, start=1) if not text]
    report.add("captions", files[1], empty, "write a caption on the line, or remove the image", fatal=False)
    _check_caption_ids(files[2], split, report)


def _check_sizes(precomp: Path, report: Report, checked: CheckedSplits) -> None:
    train, dev = (checked.splits.get(name) for name in NEEDED)
    if train is not None and len(train.captions) < FEW_CAPTIONS:
        message = f"{len(train.captions)} captions are too few steps for recipes with batches of hundreds of pairs"
        fix = "train with chan train --config small, which chooses batch size and epochs by their number"
        report.add("sizes", precomp / "train_caps.txt", [(None, message)], fix, fatal=False)
    if dev is not None and len(dev.image_ids) < FEW_IMAGES:
        message = f"with {len(dev.image_ids)} images recall is high by chance and changes with each choice of them"
        fix = "compare recall with the chance beside it, or give more images to dev (data-tools splits --dev)"
        report.add("sizes", precomp / "dev_ids.txt", [(None, message)], fix, fatal=False)


def _check_caption_ids(file: Path, split: Split, report: Report) -> None:
    if not file.is_file():
        return
    names = read_text(file).split()
    if len(names) != len(split.captions):
        message = f"{len(names)} caption ids for {len(split.captions)} captions"
        report.add("captions", file, [(None, message)], "write the split again with data-tools splits")
    first: dict[str, int] = {}
    repeated = [
        (line, f"caption id {name} is on line {first[name]} too")
        for line, name in enumerate(names, start=1)
        if first.setdefault(name, line) != line
    ]
    report.add("captions", file, repeated, "write the split again with data-tools splits")


def _check_text(file: Path, report: Report) -> bool:
    """Whether the file is UTF-8 text; this also finds what `--fix` can fix."""
    content = file.read_bytes()
    if not content.strip():
        report.add("text", file, [(None, "the file is empty")], "write the split again with data-tools splits")
        return False
    bad = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            bad.append((number, f"not UTF-8 text at byte {error.start + 1} of the line"))
    fix = "save the file as UTF-8, for instance with iconv -f LATIN1 -t UTF-8"
    report.add("text", file, bad, fix)
    mark = [(1, "byte-order mark")] if content.startswith(_MARK) else []
    report.add("text", file, mark, "remove it with data-tools verify --fix", fatal=False, fixable=True)
    ends = [
        (n, "Windows line end") for n, line in enumerate(content.split(b"\n"), start=1) if line.endswith(b"\r")
    ]
    report.add("text", file, ends, "convert it with data-tools verify --fix", fatal=False, fixable=True)
    return not bad


def fix_text(file: Path) -> None:
    """Remove a byte-order mark and convert Windows line ends; both are ignored when split files are read."""
    replace_file(file, file.read_bytes().removeprefix(_MARK).replace(b"\r\n", b"\n"))


def _check_shared(precomp: Path, report: Report, checked: CheckedSplits) -> None:
    for one, other in combinations(checked.splits, 2):
        if {one, other} == {"test", "testall"}:
            continue
        lines = checked.lines[one]
        shared = [(lines[i], f"image {i} is in {other} too") for i in checked.lines[other] if i in lines]
        fix = f"remove the images from {one} or {other}"
        report.add("shared images", precomp / f"{one}_ids.txt", sorted(shared), fix)
    if "test" in checked.splits and "testall" in checked.splits:
        test, whole = checked.splits["test"].image_ids, checked.splits["testall"].image_ids
        if test != whole[:COCO_TEST]:
            message = (
                f"test is not the first {COCO_TEST} images of testall, on which published figures are measured"
            )
            report.add(
                "shared images", precomp / "test_ids.txt", [(1, message)], "run data-tools splits", fatal=False
            )


def check_mapping(data: Path, checked: CheckedSplits, precomp: Path, report: Report) -> dict[str, str]:
    """Check that `id_mapping.json` is well-formed and has every id of the splits.

    Returns:
        The mapping, or an empty one if it is missing or malformed.
    """
    file = data / "id_mapping.json"
    if not file.is_file():
        message = "no such file; extraction and chan explain need it"
        report.add("mapping", file, [(None, message)], "run data-tools splits", fatal=False)
        return {}
    try:
        mapping = load_id_mapping(file)
        text = read_text(file)
    except InputError as error:
        repeated = _repeated_ids(file)
        report.add("mapping", file, repeated, "give each image a different id")
        if not repeated:
            report.add("mapping", file, [(None, _without(error, data))], "write it again with data-tools splits")
        return {}
    first: dict[str, str] = {}
    shared = [
        (_line_of(text, image_id), f"ids {first[name]} and {image_id} have the same file {name}")
        for image_id, name in mapping.items()
        if first.setdefault(name, image_id) != image_id
    ]
    report.add("mapping", file, shared, "remove one of the two ids", fatal=False)
    for name, lines in checked.lines.items():
        missing = [(line, f"image {i} is not in {file.name}") for i, line in lines.items() if i not in mapping]
        report.add("mapping", precomp / f"{name}_ids.txt", missing, "correct the id, or add it to the mapping")
    return mapping


def _repeated_ids(file: Path) -> list[Case]:
    """The repeated ids of a malformed mapping; none if it is not a JSON object."""
    try:
        text = read_text(file)
        counts = Counter(key for key, _ in json.loads(text, object_pairs_hook=list))
    except (InputError, ValueError, TypeError, RecursionError):
        return []
    return [(_line_of(text, key), f"id {key} is listed {n} times") for key, n in counts.items() if n > 1]


def _line_of(text: str, key: str) -> int:
    """The line of a JSON text with the first occurrence of `key` as a key."""
    return text.count("\n", 0, max(text.find(json.dumps(key) + ":"), 0)) + 1


def check_vocabulary(data: Path, checked: CheckedSplits, report: Report) -> None:
    """Check the vocabulary that training would use, and its coverage of the training captions."""
    path = find_vocabulary(data)
    if path is None:
        report.facts.append("vocabulary: none; training builds one from the train and dev captions")
        return
    try:
        vocabulary = Vocabulary.load(path)
    except InputError as error:
        report.add("vocabulary", path, [(None, _without(error, path))], "build it again with data-tools vocab")
        return
    if "train" in checked.splits:
        captions = checked.splits["train"].captions
        sample = captions[:: max(1, len(captions) // COVERAGE_SAMPLE)]
        coverage = vocabulary.coverage(count_words(sample))
        report.facts.append(
            f"vocabulary: {path}, {len(vocabulary)} words, {coverage:.2%} of the training captions"
        )
        if coverage < MIN_COVERAGE:
            message = (
                f"has {coverage:.1%} of the words of the training captions, expected at least {MIN_COVERAGE:.0%}"
            )
            report.add(
                "vocabulary", path, [(None, message)], "build one from these captions with data-tools vocab"
            )


def _without(error: InputError, path: Path) -> str:
    """The message without the name of the file, which the finding has separately."""
    text = str(error)
    return text.split(": ", 1)[1] if text.startswith(str(path)) and ": " in text else text
