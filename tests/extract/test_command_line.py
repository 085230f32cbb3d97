"""Wrong use of the commands, in this process: the end-to-end tests start real ones for a few of these."""

import sys

import pytest

from extract.command_line import butd, extract_features


def run(monkeypatch, capsys, command, *arguments):
    """The exit code of a command and what it printed as an error."""
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("absent",), 1, "absent: no such folder or list of images"),
        ((".", "--config", "nothing"), 1, "nothing: no such configuration file"),
        ((".", "--config", "scenes"), 2, "--config scenes needs --weights"),
        ((".", "--config", "scenes", "--weights", "absent.pth"), 1, "absent.pth: no such weight file"),
        ((".", "--num-boxes", "3", "--min-boxes", "2"), 2, "give either --num-boxes or"),
        ((".", "--min-boxes", "20", "--max-boxes", "10"), 2, "go together"),
        (
            (".", "--config", "scenes", "--weights", "random", "--out", ".."),
            2,
            "..: expected a file for the store",
        ),
        ((".", "--shard", "3/2"), 2, "--shard 3/2: expected I/N"),
        ((".", "--overwrite", "--shard", "1/2"), 2, "--overwrite would discard other shards' parts"),
        (
            (".", "--config", "scenes", "--weights", "random", "--boxes", "x.json", "--selection", "detectron2"),
            2,
            "--boxes gives all regions",
        ),
        ((".", "--grid", "7", "--boxes", "x.json"), 2, "--grid does not go with --boxes"),
        ((".", "--grid", "7", "--boxes-only"), 2, "--grid does not go with --boxes-only"),
        ((".", "--grid", "7", "--num-boxes", "36"), 2, "--grid gives all regions: leave out"),
        ((".", "--grid", "7", "--min-boxes", "1", "--max-boxes", "9"), 2, "--grid gives all regions"),
        ((".", "--grid", "7", "--selection", "detectron2"), 2, "--grid gives all regions"),
        ((".", "--grid", "7", "--threshold", "0.1"), 2, "--grid gives all regions"),
        ((".", "--grid", "7", "--nms", "0.5"), 2, "--grid gives all regions"),
        ((".", "--config", "grid_r50", "--weights", "random"), 2, "is for extract-features --grid N"),
        (
            (".", "--config", "grid_r50", "--grid", "7"),
            2,
            "grid_r50 needs --weights FILE: https://dl.fbaipublicfiles",
        ),
        ((".", "--ray-address", "auto"), 2, "--ray-address goes with --engine ray"),
        ((".", "--config", "scenes", "--weights", "random", "--precision", "tf32"), 2, "tf32 needs a GPU"),
        ((".", "--config", "scenes", "--weights", "random", "--boxes", "absent.json"), 1, "no such file of boxes"),
        ((".", "--config", "butd_r101_caffe_10_100"), 2, "bua-caffe-frcn-r101-k10-100.pth"),
        ((".", "--config", "scenes", "--weights", "http://127.0.0.1:1/w.pth"), 1, "could not be fetched"),
        ((".", "--device", "hpu"), 2, "--device hpu: expected auto, cpu"),
        ((".", "--device", "cuda:77"), 2, "--device cuda:77: not available here"),
    ],
)
def test_wrong_use_is_one_line(scenes, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(scenes / "images")
    found, error = run(monkeypatch, capsys, extract_features, *arguments)
    assert found == code
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_an_image_that_cannot_be_shown_is_one_line(tmp_path, monkeypatch, capsys):
    arguments = ("show", tmp_path / "absent.jpg", "--config", "scenes", "--weights", "random", "--out", "x.png")
    code, error = run(monkeypatch, capsys, butd, *arguments)
    assert (code, error) == (1, f"error: {tmp_path}/absent.jpg: cannot be read: no such file\n")


def test_caffes_network_is_not_trained(scenes, tmp_path, monkeypatch, capsys):
    arguments = ("train", "--config", "butd_r101_caffe", "--data", scenes, "--out", tmp_path / "run")
    code, error = run(monkeypatch, capsys, butd, *arguments)
    assert code == 2
    assert "cannot be trained" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--data", ".", "--out", "run"),
        ("evaluate", "--data", ".", "--weights", "w.pth"),
        ("show", "a.jpg", "--weights", "random", "--out", "x.png"),
    ],
)
def test_a_network_for_grids_detects_nothing(scenes, monkeypatch, capsys, arguments):
    monkeypatch.chdir(scenes)
    code, error = run(monkeypatch, capsys, butd, *arguments, "--config", "grid_r50")
    assert code == 2, error
    assert "is for extract-features --grid N" in error
    assert error.count("error: ") == 1
