"""The public names of the three packages, and what importing a package costs."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys

import pytest

PACKAGES = ("extract", "chan", "data_tools")


def in_process(program: str, **environment: str) -> str:
    """What a program prints in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**kept, **environment}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_library(package: str) -> None:
    names = json.loads(in_process(f"import {package}, json, sys; print(json.dumps(list(sys.modules)))"))
    heavy = {"torch", "numpy", "h5py", "transformers", "detectron2", "omegaconf", "cv2", "typer", "rich"}
    assert package in names
    assert heavy.isdisjoint(names)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_what_its_module_defines(package: str) -> None:
    facade = importlib.import_module(package)
    assert facade.__all__
    assert set(facade.__all__) <= set(dir(facade))
    for name in facade.__all__:
        value = getattr(facade, name)
        assert value.__name__ == name
        assert value is getattr(importlib.import_module(value.__module__), name)
        assert value.__doc__


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_same_names(package: str) -> None:
    facade = importlib.import_module(package)
    tree = ast.parse(inspect.getsource(facade))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = [(str(alias.asname), str(node.module)) for node in imports for alias in node.names]
    assert sorted(name for name, _ in seen) == facade.__all__
    assert all(getattr(facade, name).__module__ == module for name, module in seen)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_huge_pages_are_on_before_torch_unless_the_user_says_otherwise(package: str) -> None:
    program = f"import {package}, os, sys; print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)"
    assert in_process(program).split() == ["1", "False"]
    assert in_process(program, THP_MEM_ALLOC_ENABLE="0").split() == ["0", "False"]
