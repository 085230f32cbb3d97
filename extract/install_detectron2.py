"""Install Detectron2 as a pure-Python wheel: no compiler, no CUDA toolkit, any Python.

    python -m extract.install_detectron2                  # from PyPI's redistribution of upstream
    python -m extract.install_detectron2 --source PATH    # from a checkout or a wheel of your own

Detectron2 is not on PyPI under its own name, and upstream builds C++ and CUDA operators that nothing here
calls: its Python modules run on torchvision's. This program takes the Python files alone and packs them as a
`py3-none-any` wheel with the dependencies that they import.
"""

import argparse
import ast
import base64
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

REDISTRIBUTION = "sal-detectron2==0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
REQUIREMENTS = (
    "cloudpickle", "fvcore>=0.1.5", "hydra-core>=1.1", "iopath>=0.1.7", "matplotlib", "numpy", "omegaconf>=2.1",
    "packaging", "pillow>=7.1", "pycocotools>=2.0.2", "tabulate", "tensorboard", "termcolor>=1.1", "torch",
    "torchvision", "tqdm", "yacs>=0.1.8",
)  # fmt: skip


class InstallError(Exception):
    """Detectron2 cannot be installed; the message says why and what to do."""


def pip_command() -> list[str]:
    """How to call pip for the running environment, also where the environment has none of its own.

    Raises:
        InstallError: there is no pip at all.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip, "--python", sys.executable]
    raise InstallError("no pip found: install it (python3-pip) and run this command again")


def download(folder: Path) -> Path:
    """Fetch the redistribution's wheel through pip and check it.

    Raises:
        InstallError: pip cannot fetch it, or its SHA-256 is not the one that was inspected.
    """
    # The wheel is tagged for CPython 3.10 and is fetched as such on any Python.
    tags = ["--only-binary=:all:", "--python-version", "3.10", "--implementation", "cp"]
    command = [
        *pip_command(),
        "download",
        "--quiet",
        "--no-deps",
        *tags,
        "--dest",
        str(folder),
        REDISTRIBUTION,
    ]
    if subprocess.run(command).returncode != 0:
        raise InstallError(
            f"pip could not download {REDISTRIBUTION}; with no package index in reach, "
            "give a checkout or wheel of Detectron2 by --source PATH"
        )
    wheel = next(folder.glob("*.whl"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        raise InstallError(f"{wheel.name}: SHA-256 is {digest}, expected {SHA256}; not installed")
    return wheel


def package_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names (`detectron2/...`) and contents of Detectron2's files in a wheel or a checkout, no binaries.

    Raises:
        InstallError: `source` is neither, or holds no Detectron2.
    """
    if source.is_dir():
        found = _tree(source)
    elif zipfile.is_zipfile(source):
        found = _members(source)
    else:
        raise InstallError(f"{source}: expected a folder with Detectron2's checkout, or a wheel")
    files = [(name, content) for name, content in found if name.endswith((".py", ".yaml"))]
    if not any(name == "detectron2/__init__.py" for name, _ in files):
        raise InstallError(f"{source}: holds no detectron2/__init__.py")
    yield from files


def _tree(checkout: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted((checkout / "detectron2").rglob("*")):
        if path.is_file():
            yield path.relative_to(checkout).as_posix(), path.read_bytes()


def _members(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("detectron2/"):
                yield name, archive.read(name)


def read_version(init: bytes) -> str:
    """The value of `__version__` in Detectron2's `__init__.py`, read without running it."""
    for node in ast.parse(init).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            return str(ast.literal_eval(node.value))
    raise InstallError("detectron2/__init__.py names no __version__")


def build_wheel(source: Path, folder: Path) -> Path:
    """Pack Detectron2's Python files as `detectron2-VERSION-py3-none-any.whl` in `folder`."""
    files = dict(package_files(source))
    version = read_version(files["detectron2/__init__.py"])
    info = f"detectron2-{version}.dist-info"
    requirements = "".join(f"Requires-Dist: {requirement}\n" for requirement in REQUIREMENTS)
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: detectron2\nVersion: {version}\n"
        "Summary: Detectron2, its Python files without the compiled operators\n"
        f"License: Apache-2.0\nRequires-Python: >=3.8\n{requirements}"
    ).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: extract.install_detectron2\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    wheel = folder / f"detectron2-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return wheel


def _record(files: dict[str, bytes], name: str) -> bytes:
    lines = []
    for file, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{file},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{name},,", ""]).encode()


def install(source: Path | None = None) -> str:
    """Install Detectron2 into the running environment; returns a line that says what was done.

    Without `source` an environment that has Detectron2 is left as it is.

    Raises:
        InstallError: it could not be fetched, checked, packed or installed.
    """
    if source is None and importlib.util.find_spec("detectron2"):
        return "detectron2 is installed"
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(source or download(Path(folder)), Path(folder))
        command = [*pip_command(), "install", "--quiet", "--force-reinstall", "--no-deps", str(wheel)]
        if subprocess.run(command).returncode != 0:
            raise InstallError(f"pip could not install {wheel.name}")
        check = subprocess.run(
            [sys.executable, "-c", "import detectron2.modeling"], capture_output=True, text=True
        )
        if check.returncode != 0:
            reason = (check.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InstallError(f"{wheel.name} is installed but does not import: {reason}")
        return f"installed {wheel.name}"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m extract.install_detectron2", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--source", type=Path, help="a checkout or a wheel of Detectron2 to install instead")
    try:
        print(install(parser.parse_args().source))
    except InstallError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
