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
LEAST_COVERAGE = 0.8  # of the words of the training captions; the published vocabularies have 0.98
COVERAGE_SAMPLE = 5000  # captions: tokenizing all of COCO's takes minutes
_MARK = b"\xef\xbb\xbf"


@dataclass
class CheckedSplits:
    """What could be read: the splits by name, and for each id of a split the line that names it first."""

    splits: dict[str, Split] = field(default_factory=dict)
    lines: dict[str, dict[str, int]] = field(default_factory=dict)


def check_splits(precomp: Path, report: Report) -> CheckedSplits:
    """Every split of the folder: its files, its captions against its ids, and what splits share."""
    checked = CheckedSplits()
    names = sorted(path.name.removesuffix("_ids.txt") for path in precomp.glob("*_ids.txt"))
    for name in NEEDED:
        if name not in names:
            file = precomp / f"{name}_ids.txt"
            report.first_of("splits", file, [(None, "no such file; training reads it")], "run data-tools splits")
    for name in names:
        _check_split(precomp, name, report, checked)
    _check_shared(precomp, report, checked)
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
        report.first_of(
            "captions", files[1], [(None, _without(error, precomp))], "write the split again: data-tools splits"
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
        report.first_of("duplicates", files[0], repeated, "remove the repeated line and its five captions")
    elif repeated:
        apart = [case for case in repeated if ids[case[0] - 1] != ids[case[0] - 2]]
        report.first_of("duplicates", files[0], apart, "put the captions of an image on consecutive lines")
    empty = [(line, "the caption is empty") for line, text in enumerate(split.captions, start=1) if not text]
    report.first_of("captions", files[1], empty, "write a caption on the line, or take the image out", fatal=False)
    _check_caption_ids(files[2], split, report)


def _check_caption_ids(file: Path, split: Split, report: Report) -> None:
    if not file.is_file():
        return
    names = read_text(file).split()
    if len(names) != len(split.captions):
        message = f"{len(names)} caption ids for {len(split.captions)} captions"
        report.first_of("captions", file, [(None, message)], "write the split again: data-tools splits")
    first: dict[str, int] = {}
    twice = [
        (line, f"caption id {name} is on line {first[name]} too")
        for line, name in enumerate(names, start=1)
        if first.setdefault(name, line) != line
    ]
    report.first_of("captions", file, twice, "write the split again: data-tools splits")


def _check_text(file: Path, report: Report) -> bool:
    """Whether the file is text; what `--fix` mends is found here."""
    content = file.read_bytes()
    if not content.strip():
        report.first_of("text", file, [(None, "the file is empty")], "write the split again: data-tools splits")
        return False
    bad = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            bad.append((number, f"not UTF-8 text at byte {error.start + 1} of the line"))
    remedy = "save the file as UTF-8 (iconv -f LATIN1 -t UTF-8 if it is Latin-1)"
    report.first_of("text", file, bad, remedy)
    mark = [(1, "begins with a byte-order mark")] if content.startswith(_MARK) else []
    report.first_of("text", file, mark, "data-tools verify --fix removes it", fatal=False, fixable=True)
    ends = [
        (n, "Windows line end") for n, line in enumerate(content.split(b"\n"), start=1) if line.endswith(b"\r")
    ]
    report.first_of("text", file, ends, "data-tools verify --fix makes it a plain one", fatal=False, fixable=True)
    return not bad


def fix_text(file: Path) -> None:
    """Remove a byte-order mark and make Windows line ends plain: no reader here sees a different text."""
    replace_file(file, file.read_bytes().removeprefix(_MARK).replace(b"\r\n", b"\n"))


def _check_shared(precomp: Path, report: Report, checked: CheckedSplits) -> None:
    for one, other in combinations(checked.splits, 2):
        if {one, other} == {"test", "testall"}:
            continue
        lines = checked.lines[one]
        shared = [(lines[i], f"image {i} is in {other} too") for i in checked.lines[other] if i in lines]
        remedy = f"take the images out of {one} or {other}: what is learnt from one must not be tested on"
        report.first_of("shared images", precomp / f"{one}_ids.txt", sorted(shared), remedy)
    if "test" in checked.splits and "testall" in checked.splits:
        test, whole = checked.splits["test"].image_ids, checked.splits["testall"].image_ids
        if test != whole[:COCO_TEST]:
            message = f"test is not the first {COCO_TEST} images of testall, as the published figures have it"
            report.first_of(
                "shared images", precomp / "test_ids.txt", [(1, message)], "run data-tools splits", fatal=False
            )


def check_mapping(data: Path, checked: CheckedSplits, precomp: Path, report: Report) -> dict[str, str]:
    """`id_mapping.json`: well-formed, and holding every id of the splits. Empty where it cannot be used."""
    file = data / "id_mapping.json"
    if not file.is_file():
        message = "no such file; extraction and pictures of results need it"
        report.first_of("mapping", file, [(None, message)], "run data-tools splits", fatal=False)
        return {}
    try:
        mapping = load_id_mapping(file)
        text = read_text(file)
    except InputError as error:
        twice = _repeated_ids(file)
        report.first_of("mapping", file, twice, "give each image an id of its own")
        if not twice:
            report.first_of("mapping", file, [(None, _without(error, data))], "write it again: data-tools splits")
        return {}
    first: dict[str, str] = {}
    shared = [
        (_line_of(text, image_id), f"ids {first[name]} and {image_id} are the same file {name}")
        for image_id, name in mapping.items()
        if first.setdefault(name, image_id) != image_id
    ]
    report.first_of("mapping", file, shared, "remove one of the two ids", fatal=False)
    for name, lines in checked.lines.items():
        lost = [(line, f"image {i} is not in {file.name}") for i, line in lines.items() if i not in mapping]
        report.first_of("mapping", precomp / f"{name}_ids.txt", lost, "correct the id, or add it to the mapping")
    return mapping


def _repeated_ids(file: Path) -> list[Case]:
    """The ids that stand more than once in a mapping that is refused; none where it is no JSON object."""
    try:
        text = read_text(file)
        counts = Counter(key for key, _ in json.loads(text, object_pairs_hook=list))
    except (InputError, ValueError, TypeError, RecursionError):
        return []
    return [(_line_of(text, key), f"id {key} is there {n} times") for key, n in counts.items() if n > 1]


def _line_of(text: str, key: str) -> int:
    """The line of a JSON text on which `key` first stands as one."""
    return text.count("\n", 0, max(text.find(json.dumps(key) + ":"), 0)) + 1


def check_vocabulary(data: Path, checked: CheckedSplits, report: Report) -> None:
    """The vocabulary that training would use, and what it knows of the training captions."""
    path = find_vocabulary(data)
    if path is None:
        report.facts.append("vocabulary: none; training builds one of the train and dev captions")
        return
    try:
        vocabulary = Vocabulary.load(path)
    except InputError as error:
        report.first_of("vocabulary", path, [(None, _without(error, path))], "build it again: data-tools vocab")
        return
    if "train" in checked.splits:
        captions = checked.splits["train"].captions
        sample = captions[:: max(1, len(captions) // COVERAGE_SAMPLE)]
        coverage = vocabulary.coverage(count_words(sample))
        report.facts.append(
            f"vocabulary: {path}, {len(vocabulary)} words, {coverage:.2%} of the training captions"
        )
        if coverage < LEAST_COVERAGE:
            message = f"knows {coverage:.1%} of the words of the training captions, expected {LEAST_COVERAGE:.0%}"
            report.first_of("vocabulary", path, [(None, message)], "build one of these captions: data-tools vocab")


def _without(error: InputError, path: Path) -> str:
    """The message without the file's name, which the finding gives."""
    text = str(error)
    return text.split(": ", 1)[1] if text.startswith(str(path)) and ": " in text else text
