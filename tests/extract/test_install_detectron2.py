import subprocess
import sys
import zipfile

import pytest

from extract import install_detectron2 as installer
from extract.install_detectron2 import InstallError, build_wheel, read_version

INIT = b'"""A package."""\n__version__ = "0.9"\n'


def checkout(tmp_path):
    package = tmp_path / "checkout" / "detectron2"
    (package / "layers").mkdir(parents=True)
    (package / "__init__.py").write_bytes(INIT)
    (package / "layers" / "__init__.py").write_text("layers = True\n")
    (package / "_C.cpython-310-x86_64-linux-gnu.so").write_bytes(b"\x7fELF")
    (tmp_path / "checkout" / "tools").mkdir()
    (tmp_path / "checkout" / "tools" / "train.py").touch()
    return tmp_path / "checkout"


def redistribution(tmp_path):
    wheel = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("detectron2/__init__.py", INIT)
        archive.writestr("detectron2/layers/__init__.py", "layers = True\n")
        archive.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", b"\x7fELF")
        archive.writestr("tools/train.py", "")
        archive.writestr("sal_detectron2-0.7.2.dist-info/METADATA", "Requires-Dist: numpy<2\n")
    return wheel


@pytest.mark.parametrize("source", [checkout, redistribution])
def test_the_wheel_is_pure_python_without_tools_and_wrong_pins(tmp_path, source):
    wheel = build_wheel(source(tmp_path), tmp_path)
    assert wheel.name == "detectron2-0.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read("detectron2-0.9.dist-info/METADATA").decode()
    assert [name for name in names if not name.startswith("detectron2-0.9.dist-info/")] == [
        "detectron2/__init__.py",
        "detectron2/layers/__init__.py",
    ]
    assert "Requires-Dist: numpy\n" in metadata
    assert "numpy<2" not in metadata


def test_pip_accepts_the_wheel_and_it_imports(tmp_path):
    wheel = build_wheel(checkout(tmp_path), tmp_path)
    command = [
        *installer.pip_command(),
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(command, check=True)
    program = "import detectron2, detectron2.layers; print(detectron2.__version__, detectron2.layers.layers)"
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert printed.stdout == "0.9 True\n"


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = checkout(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert build_wheel(source, tmp_path / "one").read_bytes() == build_wheel(source, tmp_path / "two").read_bytes()


def test_an_installed_detectron2_is_left_alone(monkeypatch):
    monkeypatch.setattr(installer, "download", None)
    assert installer.install() == "detectron2 is installed"


def test_a_download_with_another_checksum_is_refused(tmp_path, monkeypatch):
    class Done:
        returncode = 0

    monkeypatch.setattr("subprocess.run", lambda command: redistribution(tmp_path) and Done)
    with pytest.raises(InstallError, match=r"SHA-256 is .*not installed"):
        installer.download(tmp_path)


def test_no_index_in_reach_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InstallError, match="--source PATH"):
        installer.download(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "text", "empty folder"])
def test_a_source_without_detectron2_is_refused(tmp_path, kind):
    source = tmp_path / "source"
    if kind == "text":
        source.write_text("no wheel")
    elif kind == "empty folder":
        source.mkdir()
    with pytest.raises(InstallError, match="source"):
        build_wheel(source, tmp_path)


def test_the_version_is_read_without_running_anything():
    assert read_version(b"import nothing_like_this\n__version__ = '1.2'\n") == "1.2"
    with pytest.raises(InstallError, match="no __version__"):
        read_version(b"x = 1\n")
