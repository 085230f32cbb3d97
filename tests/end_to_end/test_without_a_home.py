"""A container's user: no HOME, and no entry among the users of the machine."""

import os
import subprocess
import sys

import pytest

COMMANDS = {
    "chan": ("from chan.command_line import chan as run; run()", "train --config none --data x --out y"),
    "extract-features": ("from extract.command_line import extract_features as run; run()", "none --out y"),
    "butd": ("from extract.command_line import butd as run; run()", "show none.jpg --weights random --out y.png"),
    "data-tools": ("from data_tools.command_line import data_tools as run; run()", "vocab --data none"),
    "tokenizer": ("from data_tools.captions.tokenization import tokenize; print(tokenize('a dog'))", ""),
    "libraries": ("import data_tools, nltk, matplotlib.pyplot, huggingface_hub, transformers, torch", ""),
    "cache": ("from data_tools.weights.downloads import cache_folder; print(cache_folder())", ""),
}
NOBODY = """
import pwd
def getpwuid(user):
    raise KeyError(user)
pwd.getpwuid = getpwuid
"""


@pytest.mark.parametrize(("program", "arguments"), COMMANDS.values(), ids=COMMANDS)
def test_no_command_needs_a_home(tmp_path, program, arguments):
    start = f"import sys, os; sys.path[:] = {sys.path!r}; os.chdir({str(tmp_path)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", start + NOBODY + program, *arguments.split()],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr == "" or done.returncode in (1, 2)
