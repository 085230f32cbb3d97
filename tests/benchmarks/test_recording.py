"""One file of results for each machine, a section for each benchmark."""

import json
from pathlib import Path

from benchmarks.recording import record, results_file
from data_tools.machine import machine


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "results" / "machine.json"
    record("reading", {"share": 1.0}, path)
    record("scoring", {"share": 2.0}, path)
    assert record("reading", {"share": 3.0}, path) == path
    found = json.loads(path.read_text())
    assert list(found) == ["reading", "scoring"]
    assert found["reading"] == {"share": 3.0, "machine": machine()}
    assert found["scoring"]["share"] == 2.0


def test_the_file_is_named_after_the_machine() -> None:
    name = results_file().name
    assert name == name.lower()
    assert str(machine()["cores"]) in name or machine()["gpu"]
