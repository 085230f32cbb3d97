"""The project installs as it says: the wheel carries its configurations, Docker and make do the same."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_the_configurations_and_finds_them_by_name(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "from data_tools.configs import find_config; import data_tools;"
        "print(data_tools.__file__, find_config('extract', 'scenes'), find_config('chan', 'f30k_bigru'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    package, detector, retrieval = done.stdout.split()
    assert Path(package).parent.parent == tmp_path
    assert Path(detector) == tmp_path / "extract" / "configs" / "scenes.yaml"
    assert Path(retrieval) == tmp_path / "chan" / "configs" / "f30k_bigru.yaml"
    shipped = {path.name for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.name for path in tmp_path.rglob("*.yaml")} == shipped


def test_the_wheel_carries_the_labels(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "from data_tools.detection.labels import load_labels; import data_tools.detection.labels;"
        "names = [load_labels(spec) for spec in ('visual_genome', 'scenes')];"
        "print(data_tools.detection.labels.__file__, *(len(n.classes) for n in names),"
        "*(len(n.attributes) for n in names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    module, *counts = done.stdout.split()
    assert Path(module) == tmp_path / "data_tools" / "labels.py"
    assert counts == ["1600", "4", "400", "13"]


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" not in name}
    assert tops == {"extract", "chan", "data_tools"}


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=! ;\[]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert names <= {name.lower().replace("_", "-") for name in pins}


def test_no_index_address_is_in_the_constraints():
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_docker_installs_by_the_makefile_on_a_cuda_runtime():
    dockerfile = (ROOT / "Dockerfile").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^FROM nvidia/cuda:[\d.]+-runtime-", dockerfile, re.M)
    assert re.findall(r"^RUN (make .*)$", dockerfile, re.M) == ["make setup"]
    assert "pip install" not in dockerfile
    needs = re.search(r"install --yes --no-install-recommends \\\s+(.*) \\", dockerfile)
    assert needs is not None
    said = re.search(r"^# Each sets itself up: (.*) are all it needs\.$", makefile, re.M)
    assert said is not None
    named = re.sub(r"\(.*?\)", "", said[1]).replace(" and ", ", ").split(",")
    triton = {"gcc", "libc6-dev", "dev"}  # starts its kernels with them, on a GPU
    assert {name.strip() for name in named} | triton == {
        name.removeprefix("python3-") for name in needs[1].split()
    }
    setup = makefile.split("$(STAMP):")[1].split("\n\n")[0]
    for step in ("venv --without-pip", "--constraint constraints.txt", "--editable", "extract.install_detectron2"):
        assert step in setup


def test_make_setup_is_done_when_it_is_done():
    done = subprocess.run(["make", "-n", "setup", "VENV=" + sys.prefix], cwd=ROOT, capture_output=True, text=True)
    if not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("this environment was not made by make setup")
    assert "pip" not in done.stdout
