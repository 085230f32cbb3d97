"""What the four commands have in common: quick help, the same options in the same words, a version, exit codes."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from data_tools.configs import config_names

APPS = {
    "extract-features": ("extract.command_line", "extract_features_app", "extract_features"),
    "butd": ("extract.command_line", "butd_app", "butd"),
    "data-tools": ("data_tools.command_line", "app", "data_tools"),
    "chan": ("chan.command_line", "app", "chan"),
}
HEAVY = {
    "torch", "torchvision", "numpy", "h5py", "transformers", "detectron2", "omegaconf", "yaml", "cv2", "PIL",
    "matplotlib", "nltk", "safetensors", "huggingface_hub",
}  # fmt: skip
GENERAL = {"--help", "--version", "--install-completion", "--show-completion"}

# Calls the entry point with each list of arguments; prints the exit codes and the modules that were imported.
PROGRAM = """
import contextlib, importlib, io, json, sys
name, module, function, calls = json.loads(sys.argv[1])
entry, ended = getattr(importlib.import_module(module), function), []
for arguments in calls:
    sys.argv = [name, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            entry()
        except SystemExit as error:
            ended.append([error.code or 0, out.getvalue(), err.getvalue()])
print(json.dumps([ended, sorted(sys.modules)]))
"""


def commands(name: str) -> dict[tuple[str, ...], Any]:
    """The command, or its sub-commands, by the arguments that choose it."""
    module, app, _ = APPS[name]
    command = typer.main.get_command(getattr(importlib.import_module(module), app))
    return {(sub,): found for sub, found in getattr(command, "commands", {}).items()} or {(): command}


ALL = [(name, path, command) for name in APPS for path, command in commands(name).items()]


def options(command: Any) -> dict[str, Any]:
    """The options of a command that are its own, by their names."""
    found = {option.opts[0]: option for option in command.params if option.opts[0].startswith("--")}
    return {name: option for name, option in found.items() if name not in GENERAL}


def each(option: str = "--json") -> pytest.MarkDecorator:
    """Every command that has an option."""
    found = [entry for entry in ALL if option in options(entry[2])]
    names = [" ".join([name, *path]) for name, path, _ in found]
    return pytest.mark.parametrize(("name", "path", "command"), found, ids=names)


def run(name: str, *calls: tuple[str, ...]) -> tuple[list[tuple[int, str, str]], set[str]]:
    """How calls of a command end in one process (exit code, output, errors), and the modules it imported."""
    module, _, function = APPS[name]
    call = json.dumps([name, module, function, calls])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, call], capture_output=True, text=True, timeout=120,
        env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended, modules = json.loads(done.stdout)
    return [(code, out, err) for code, out, err in ended], set(modules)


@pytest.mark.parametrize("name", APPS)
def test_help_and_version_import_no_library(name: str) -> None:
    paths = list(commands(name))
    ended, modules = run(name, ("--help",), ("--version",), *((*path, "--help") for path in paths))
    assert [code for code, *_ in ended] == [0] * (2 + len(paths))
    assert ended[1][1] == f"{name} {version('pixels-to-recall')}\n"
    for path, (_, out, _) in zip(paths, ended[2:], strict=True):
        assert f"Example: {' '.join([name, *path])} " in " ".join(out.split())
    assert HEAVY.isdisjoint(modules)


@pytest.mark.parametrize("name", APPS)
def test_usage_errors_import_no_library(name: str) -> None:
    paths = list(commands(name))
    ended, modules = run(name, ("--nothing",), *((*path, "--nothing") for path in paths))
    assert [code for code, *_ in ended] == [2] * (1 + len(paths))
    assert all("No such option" in err for *_, err in ended)
    assert HEAVY.isdisjoint(modules)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("extract-features", (".", "--num-boxes", "3", "--min-boxes", "2"), "--min-boxes"),
        ("extract-features", (".", "--shard", "3/2"), "--shard 3/2"),
        ("extract-features", (".", "--precision", "fp8"), "--precision"),
        ("butd", ("train", "--data", "d", "--out", "o"), "--config"),
        ("butd", ("show", "x.jpg", "--out", "o", "--num-boxes", "0"), "--num-boxes"),
        ("data-tools", ("inspect", "x.h5", "--image", "1"), "--out"),
        ("data-tools", ("join", "--out", "x.h5", "--virtual"), "--virtual"),
        ("data-tools", ("visual-genome", "d", "--out", "o", "--objects-vocab", "x"), "--attributes-vocab"),
        ("chan", ("train", "--data", "d", "--out", "o"), "--config"),
        ("chan", ("evaluate", "r", "--data", "d", "--split", "test", "--precision", "tf32"), "--precision"),
        ("chan", ("ensemble", "a.npy", "--data", "d", "--split", "test"), "ensemble"),
    ],
)
def test_wrong_options_are_found_before_a_library_is_imported(
    name: str, arguments: tuple[str, ...], said: str
) -> None:
    [(code, _, err)], modules = run(name, arguments)
    assert code == 2
    assert said in err
    assert HEAVY.isdisjoint(modules)


@each()
def test_the_example_is_a_valid_call(name: str, path: tuple[str, ...], command: Any) -> None:
    words = shlex.split(command.epilog.removeprefix("Example:"))
    assert tuple(words[: 1 + len(path)]) == (name, *path)
    context = command.make_context(name, words[1 + len(path) :])  # a wrong option or value raises
    assert any(context.get_parameter_source(key).name == "COMMANDLINE" for key in context.params)
    assert len(command.epilog.split("\n")[1]) < 100  # in one line of a usual terminal


@each()
def test_every_option_is_in_a_group_and_explained_in_a_sentence(
    name: str, path: tuple[str, ...], command: Any
) -> None:
    found = options(command)
    assert found
    for option in found.values():
        assert option.rich_help_panel, f"{option.opts[0]} is in no group"
    for parameter in command.params:
        if parameter.opts[0] not in GENERAL:
            assert re.fullmatch(r"[A-Zi].{15,}\.", parameter.help), f"{parameter.opts[0]}: {parameter.help}"
            assert "[" not in parameter.help, f"{parameter.opts[0]}: rich reads brackets as markup"


def test_every_command_prints_json_and_names_what_it_writes_by_out() -> None:
    for name, path, command in ALL:
        assert "--json" in options(command), [name, *path]
        assert "--output" not in options(command), [name, *path]
    silent = {" ".join([name, *path]) for name, path, command in ALL if "--out" not in options(command)}
    only_print = {"butd evaluate", "chan ensemble", "chan push", "chan serve", "data-tools verify"}
    assert silent == only_print


@pytest.mark.parametrize("option", ["--json", "--device", "--resume", "--data"])
def test_an_option_has_the_same_words_in_every_command_of_a_package(option: str) -> None:
    words: dict[str, set[str]] = {}
    for name, _, command in ALL:
        if option in options(command):
            package = name if option == "--data" else "all"  # the detector's data is laid out otherwise
            words.setdefault(package, set()).add(options(command)[option].help)
    assert words
    assert all(len(texts) == 1 for texts in words.values())


@each("--seed")
def test_a_seed_says_what_is_random(name: str, path: tuple[str, ...], command: Any) -> None:
    text = options(command)["--seed"].help
    assert re.fullmatch(r"Seed of .+: the same seed gives the same result\.", text)


@each("--config")
def test_shipped_configurations_are_named_and_completed(name: str, path: tuple[str, ...], command: Any) -> None:
    option, names = options(command)["--config"], config_names(APPS[name][0].split(".")[0])
    assert len(names) > 3
    assert all(re.search(rf"\b{shipped}\b", option.help) for shipped in names)
    context = command.make_context(name, [], resilient_parsing=True)
    completed = [item.value for item in option.shell_complete(context, names[0][:3])]
    assert names[0] in completed
    assert set(completed) <= set(names)


@pytest.mark.parametrize("name", APPS)
def test_a_shell_completes_options(name: str) -> None:
    module, _, function = APPS[name]
    words = " ".join([name, *next(iter(commands(name))), "--js"])
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    program = f"import sys; sys.argv = [{name!r}]; from {module} import {function}; {function}()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, variable: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
    )  # fmt: skip
    assert done.stdout.split() == ["--json"]


def test_chan_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "chan", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"chan {version('pixels-to-recall')}\n"), done.stderr


def test_an_interrupted_command_ends_in_one_line(tmp_path: Path) -> None:
    line = "import sys; sys.argv[0] = 'data-tools'; from data_tools.command_line import data_tools; data_tools()"
    arguments = ["scenes", "--out", str(tmp_path / "scenes"), "--train", "100000"]
    process = subprocess.Popen([sys.executable, "-c", line, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
