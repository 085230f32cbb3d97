"""Where figures are kept: one file for each machine, with a section for each benchmark."""

import json
import re
from pathlib import Path
from typing import Any

from data_tools.files import replace_file
from data_tools.machine import machine

RESULTS = Path(__file__).parent / "results"


def results_file() -> Path:
    """The file of this machine."""
    about = machine()
    name = about["gpu"] or f"{about['processor']} {about['cores']} cores"
    return RESULTS / (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ".json")


def record(benchmark: str, document: dict[str, Any], path: Path | None = None) -> Path:
    """Put the figures of a benchmark, with the machine they were taken on, into a file of results; its path.

    Args:
        benchmark: the section, which is replaced.
        document: plain data.
        path: another file than that of this machine.
    """
    path = path or results_file()
    sections = json.loads(path.read_text()) if path.is_file() else {}
    sections[benchmark] = {**document, "machine": machine()}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(dict(sorted(sections.items())), indent=2) + "\n").encode())
    return path
