"""The wheel carries what the packages read at run time, and every dependency is pinned."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The files of the wheel, built by the build back end of this environment: no package index is asked."""
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def printed(program, site):
    """What a program prints that imports the packages from the unpacked wheel."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=site, env={"PYTHONPATH": str(site)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_the_wheel_finds_its_configurations_by_name(unpacked):
    program = (
        "from data_tools.configs import find_config; import data_tools;"
        "print(data_tools.__file__, find_config('extract', 'scenes'), find_config('chan', 'f30k_bigru'))"
    )
    package, detector, retrieval = printed(program, unpacked)
    assert Path(package).parent.parent == unpacked
    assert Path(detector) == unpacked / "extract" / "configs" / "scenes.yaml"
    assert Path(retrieval) == unpacked / "chan" / "configs" / "f30k_bigru.yaml"
    shipped = {path.name for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.name for path in unpacked.rglob("*.yaml")} == shipped


def test_the_wheel_carries_the_label_sets(unpacked):
    program = (
        "from data_tools.detection import labels;"
        "names = [labels.load_labels(spec) for spec in ('visual_genome', 'scenes')];"
        "print(labels.__file__, *(len(n.classes) for n in names), *(len(n.attributes) for n in names))"
    )
    module, *counts = printed(program, unpacked)
    assert Path(module) == unpacked / "data_tools" / "detection" / "labels.py"
    assert counts == ["1600", "4", "400", "13"]


def test_the_wheel_holds_every_module_of_the_three_packages_and_nothing_else(unpacked):
    inside = {path.relative_to(unpacked) for path in unpacked.rglob("*.py")}
    listed = {
        path.relative_to(ROOT)
        for name in ("extract", "chan", "data_tools")
        for path in (ROOT / name).rglob("*.py")
    }
    assert inside == listed
    tops = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}
    assert tops == {"extract", "chan", "data_tools"}


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    wanted = [*project["dependencies"], *extras]
    names = {re.split(r"[<>=! ;\[]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert names <= {name.lower().replace("_", "-") for name in pins}
    assert not any("/" in line for line in lines if not line.startswith("#"))  # versions, no addresses
