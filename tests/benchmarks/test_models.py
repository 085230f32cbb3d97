"""The page of results shows the recorded figures."""

import json
from pathlib import Path

import pytest

from benchmarks.models import BEGIN, END, table, with_table

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_recorded_figures() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    document = json.loads((ROOT / "benchmarks" / "results" / "models.json").read_text())
    assert with_table(page, document) == page  # else: python -m benchmarks.models --page docs/results.md


def test_a_table_has_means_deviations_and_the_ratio_of_steps() -> None:
    run = {"test i2t r1": 20.0, "test t2i r1": 10.0, "chance": 31.56, "parameters": 4_500_000}
    runs = {
        "CHAN 1": {**run, "model": "CHAN", "dev rsum": 300.0, "test rsum": 250.0, "best epoch": 9},
        "CHAN 2": {**run, "model": "CHAN", "dev rsum": 310.0, "test rsum": 270.0, "best epoch": 11},
        "SCAN t2i 1": {**run, "model": "SCAN t2i", "dev rsum": 320.0, "test rsum": 280.0, "best epoch": 7},
    }
    document = {"runs": runs, "step seconds": {"CHAN": [1.0, 3.0, 2.0], "SCAN t2i": [5.0, 5.0, 9.0]}}
    lines = table(document).splitlines()
    assert (
        lines[2]
        == "| CHAN | 2 | 305.0 ± 7.1 | 260.0 ± 14.1 | 20.0 ± 0.0 | 10.0 ± 0.0 | 9, 11 | 4.50 M | 2.00 s, 1.00 |"
    )
    assert lines[3] == "| SCAN t2i | 1 | 320.0 | 280.0 | 20.0 | 10.0 | 7 | 4.50 M | 5.00 s, 2.50 |"
    assert lines[-1] == "A random ranking comes to an rsum of 31.6."
    assert with_table(f"a\n{BEGIN}old{END}\nb\n", document) == f"a\n{BEGIN}{table(document)}{END}\nb\n"
    with pytest.raises(ValueError, match="expected the lines"):
        with_table("no markers", document)
