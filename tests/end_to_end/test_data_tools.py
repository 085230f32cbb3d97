"""The command `data-tools` in processes of its own, and the guide that shows what it prints."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import open_features
from data_tools.captions.splits import load_split
from data_tools.captions.vocabulary import Vocabulary

BIN = Path(sys.executable).parent
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def shell(line, folder):
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def tools(*arguments, cwd=None):
    line = [str(BIN / "data-tools"), *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=120)


def one_line(done, code):
    """The only thing a failed command says beside its progress, checked for its exit code."""
    assert done.returncode == code, done.stderr
    lines = [
        line
        for line in done.stderr.splitlines()
        if not line.startswith(("index:", "convert:", "decode:", "features:"))
    ]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def data(downloads, tmp_path):
    shutil.copytree(downloads / "data", tmp_path / "data")
    return tmp_path / "data"


def console_blocks(text):
    """(command, output) of every `console` block, in order."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.M | re.S):
        for entry in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = entry.partition("\n")
            yield command, output.rstrip("\n")


def test_the_guide_shows_what_the_commands_print(downloads, tmp_path):
    shutil.copytree(downloads / "data", tmp_path / "data")
    commands = list(console_blocks(GUIDE.read_text()))
    assert {line.split()[1] for line, _ in commands if line.startswith("data-tools")} == {
        "splits", "convert", "inspect", "vocab", "verify", "join",
    }  # fmt: skip
    for command, output in commands:
        assert shell(command, tmp_path).stdout.rstrip() == output, command
    assert Image.open(tmp_path / "12.png").size == (640, 480)


@pytest.fixture
def coco(data):
    """The small COCO with splits and features: it will train."""
    assert tools("splits", data / "coco" / "dataset_coco.json", "--out", data / "coco").returncode == 0
    store = data / "coco" / "precomp" / "features.h5"
    assert tools("convert", data / "coco" / "trainval.tsv", "--out", store).returncode == 0
    return data / "coco"


def test_verify_reports_and_fixes(coco):
    captions = coco / "precomp" / "dev_caps.txt"
    captions.write_bytes(captions.read_bytes().replace(b"\n", b"\r\n"))
    assert "warning" in tools("verify", coco).stdout
    fixed = tools("verify", coco, "--fix", "--json")
    report = json.loads(fixed.stdout)
    left = [found for found in report["findings"] if found["check"] != "sizes"]  # the data are few
    assert (fixed.returncode, left, report["fixed"]) == (0, [], [str(captions)])
    captions.write_text("one\n")
    broken = tools("verify", coco, "--sample", 2, "--json")
    assert broken.returncode == 1
    report = json.loads(broken.stdout)
    (finding,) = (found for found in report["findings"] if found["check"] != "sizes")
    assert not report["will_train"]
    assert finding["message"].startswith("1 captions for the 2 lines")


@pytest.mark.slow
def test_what_verify_passes_trains(coco, tmp_path):
    assert tools("verify", coco).returncode == 0
    settings = ("model.dim=16", "train.epochs=1", "train.batch_size=8", "data.workers=0")
    line = [BIN / "chan", "train", "--config", "scenes", "--data", coco, "--out", tmp_path / "run", *settings]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_store_goes_round_all_formats(data, tmp_path):
    start = tmp_path / "start.h5"
    assert tools("convert", data / "coco" / "trainval.tsv", "--out", start).returncode == 0
    source = start
    for target, to in (
        ("a.tsv", "butd"),
        ("b.h5", "store"),
        ("c", "milvlg"),
        ("d_ims.npy", "scan"),
        ("e.h5", "store"),
    ):
        done = tools("convert", source, "--out", tmp_path / target, "--to", to, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["images"] == 11
        source = tmp_path / target
    first, last = open_features(start), open_features(source)
    rows = first.rows(last.image_ids)
    np.testing.assert_array_equal(first.gather(rows), last.gather(np.arange(11)))


def test_the_same_captions_give_the_same_vocabulary(flickr8k, scan_vocabularies, tmp_path):
    done = tools(
        "vocab", flickr8k, "--out", tmp_path / "one.json",
        "--compare", scan_vocabularies / "f30k_precomp_vocab.json", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    splits = [load_split(flickr8k / "precomp", name) for name in ("train", "dev")]
    Vocabulary.build(text for split in splits for text in split.captions).save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    summary = json.loads(done.stdout)
    assert (summary["words"], summary["captions"]) == (1026, 4500)
    assert summary["compared"]["words"] == 8481
    mine, theirs = (
        set(Vocabulary.load(path).words)
        for path in (tmp_path / "one.json", scan_vocabularies / "f30k_precomp_vocab.json")
    )
    assert summary["compared"]["in both"] == len(mine & theirs)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("splits", "absent.json", "--out", "o"), 1, "absent.json: No such file"),
        (("splits", "list.json", "--out", "o"), 1, "list.json: not one of Karpathy's"),
        (("splits", "a.csv", "--out", "o", "--images", "."), 1, "x.jpg: no such file (image x)"),
        (("splits", "a.csv", "--out", "o", "--ids", "dev"), 2, "--ids dev: expected SPLIT=FILE"),
        (("splits", "a.csv", "--out", "o", "--ids", "dev=list.json"), 2, "--ids: only for COCO's caption files"),
        (("splits", "a.csv", "--out", "o", "--dev", "1"), 2, "leave none of the 1 images"),
        (("splits", "a.tsv", "--out", "o"), 1, "a.tsv, line 1: expected a column image"),
        (("vocab", "."), 1, "holds no split"),
        (("convert", "a.tsv", "--out", "o.h5"), 1, "a.tsv, line 1: expected the 6 fields"),
        (("convert", "list.json", "--out", "o.h5"), 1, "list.json: not a readable HDF5 file"),
        (("convert", "absent", "--out", "o.h5"), 1, "absent: no such file"),
        (("convert", ".", "--out", "o.h5"), 1, "holds no array"),
        (("inspect", "absent.h5"), 1, "absent.h5: no such file"),
        (("inspect", "absent.h5", "--image", "1"), 2, "--image and --out go together"),
        (("join", "--out", "o.h5"), 1, "o.h5.parts: found no parts"),
        (("join", "absent.h5", "--out", "o.h5"), 1, "absent.h5: no such file"),
        (("join", "--out", "o.h5", "--virtual"), 2, "--virtual needs the stores"),
        (("join", "o.h5", "--out", "list.json"), 2, "list.json: exists already; --overwrite"),
        (("verify", "."), 1, "holds no split"),
    ],
)
def test_wrong_use_and_wrong_files_are_one_line(tmp_path, arguments, code, message):
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "a.csv").write_text("image,caption\nx.jpg,a cat\n")
    (tmp_path / "a.tsv").write_text("x.jpg\ta cat\n")
    assert message in one_line(tools(*arguments, cwd=tmp_path), code)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.h5").exists()


@pytest.mark.parametrize("name", ["splits", "vocab", "convert", "inspect", "verify", "join"])
def test_every_command_has_help_with_an_example(name):
    done = tools(name, "--help")
    assert done.returncode == 0
    assert f"Example: data-tools {name}" in " ".join(done.stdout.split())
