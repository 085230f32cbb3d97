"""The report beside a store: which images were asked for, and why some could not be stored."""

import json
from collections.abc import Sequence
from pathlib import Path

from data_tools.files import replace_file


def report_path(store: Path) -> Path:
    """Where the report of a store lies: beside it."""
    return store.with_name(store.name.removesuffix(".h5") + ".report.json")


def write_report(store: Path, stored: int, failures: Sequence[dict[str, str]]) -> Path:
    """Write `STORE.report.json`: how many images were asked for and stored, and each failure."""
    path = report_path(store)
    report = {"images": stored + len(failures), "stored": stored, "failures": list(failures)}
    replace_file(path, json.dumps(report, indent=2, ensure_ascii=False).encode())
    return path
