"""The commands as a user runs them: once in processes of their own, otherwise in this one for speed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chan.command_line import chan as entry


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Chan:
    """Calls the entry point with arguments and tells how it ended."""

    def __init__(self, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.capture, self.patch = capture, patch

    def __call__(self, *arguments: object, code: int = 0) -> Ended:
        self.patch.setattr(sys, "argv", ["chan", *map(str, arguments)])
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry()
        out, err = self.capture.readouterr()
        assert (ended.value.code or 0) == code, err
        return Ended(code, out, err)

    def complains(self, *arguments: object, code: int) -> str:
        lines = self(*arguments, code=code).err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture
def chan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chan:
    return Chan(capsys, monkeypatch)


@pytest.fixture(scope="module")
def run(dataset: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two of its three epochs, made by a process."""
    folder = tmp_path_factory.mktemp("command") / "run"
    arguments = ["train", "--data", dataset, "--out", folder, "--config", tiny_config, "train.epochs=2"]
    done = in_process(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("best dev rsum ")
    assert done.stdout.endswith(f"of 2: {folder / 'best.safetensors'}\n")
    return folder


def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from chan.command_line import chan; chan()", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_mistake_ends_a_process_with_one_line(run: Path, dataset: Path) -> None:
    done = in_process("evaluate", run, "--data", dataset, "--split", "nothing")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "nothing_ids.txt" in done.stderr


def test_train_resume_evaluate_explain(
    run: Path, chan: Chan, dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    data = ("--data", dataset, "--device", "cpu")
    start = ("train", *data, "--out", run, "--config", tiny_config)
    assert "--resume" in chan.complains(*start, code=2)
    assert "train.lr" in chan.complains(*start, "--resume", "train.lr=1", code=2)
    done = json.loads(chan("train", *data, "--out", run, "--resume", "--json", "train.epochs=3").out)
    assert (done["epochs"], done["steps"]) == (3, 9)
    assert "epochs: 3" in (run / "config.yaml").read_text()

    scores = tmp_path / "scores.npy"
    evaluate = ("evaluate", run, *data, "--split", "dev")
    document = json.loads(chan(*evaluate, "--json", "--scores", scores).out)
    assert document["split"] == "dev"
    assert document["rsum"] == done["best_rsum"]
    assert set(document["i2t"]) == {"r1", "r5", "r10", "medr", "meanr"}
    matrix = np.load(scores, allow_pickle=False)
    assert (matrix.shape, matrix.dtype) == ((5, 25), np.float32)
    assert document["folds"] == 1
    low, high = document["intervals"]["rsum"]
    assert low <= document["rsum"] <= high
    folds = json.loads(chan(*evaluate, "--json", "--folds", 5).out)
    assert (folds["folds"], folds["t2i"]["r1"]) == (5, 100.0)  # each caption has one image to choose
    assert "average of 5 folds of 1 images" in chan(*evaluate, "--folds", 5).out
    assert "--folds 2" in chan(*evaluate, "--folds", 2, code=2).err
    assert "COCO's testall" in chan(*evaluate, "--eccv", code=1).err

    np.save(tmp_path / "other.npy", np.zeros((5, 25), dtype=np.float32))
    ensemble = ("ensemble", scores, tmp_path / "other.npy", "--data", dataset, "--split", "dev")
    halved = json.loads(chan(*ensemble, "--json").out)
    assert halved["rsum"] == document["rsum"]  # the average with a constant ranks as before
    assert "image to text" in chan(*ensemble).out
    assert "two models" in chan.complains("ensemble", scores, "--data", dataset, "--split", "dev", code=2)
    assert "(6, 30)" in chan.complains(*ensemble[:-1], "test", code=1)

    table = chan(*evaluate).out
    assert "image to text" in table
    assert f"rsum {document['rsum']:.1f} of 600" in table
    assert document["chance"]["t2i"] == [20.0, 100.0, 100.0]  # among five images
    report = tmp_path / "report"
    assert json.loads(chan(*evaluate, "--out", report, "--json").out) == document
    assert json.loads((report / "metrics.json").read_text()) == document
    assert (report / "worst.png").is_file()
    assert (run / "curves.png").is_file()

    picture = tmp_path / "explained.png"
    explained = json.loads(chan("explain", run, *data, "--split", "test", "--out", picture, "--json").out)
    assert explained == {"file": str(picture), "captions": 8}
    with Image.open(picture) as image:
        assert image.width > 1000
        assert image.height > 8 * 280
    explain = ("explain", run, *data, "--split", "test", "--out")
    ids = (dataset / "precomp" / "test_ids.txt").read_text().split()
    first = ids[0]
    asked = json.loads(chan(*explain, picture, "--image", first, "--captions", 2, "--json").out)
    assert asked["captions"] == 2
    chan(*explain, picture, "--caption", "a red square", "--images", 5)
    with Image.open(picture) as image:
        assert 2 * 280 < image.height < 3 * 280  # two rows of images
    assert "FILE.png" in chan.complains(*explain, tmp_path / "explained", code=2)
    assert "no such image" in chan.complains(*explain, picture, "--image", "nothing", code=1)


def test_compare_two_runs(run: Path, chan: Chan, dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    data = ("--data", dataset, "--device", "cpu")
    other = tmp_path / "other"
    chan("train", *data, "--out", other, "--config", tiny_config, "train.seed=5", "train.epochs=1")
    picture = tmp_path / "differences.png"
    compare = ("compare", run, other, *data, "--split", "test")
    found = json.loads(chan(*compare, "--json", "--out", picture).out)
    assert found["difference_from"] == "run"
    evaluated = json.loads(chan("evaluate", other, *data, "--split", "test", "--json").out)
    assert found["models"]["other"] == evaluated
    expected = evaluated["rsum"] - found["models"]["run"]["rsum"]
    assert found["differences"]["other"]["rsum"] == pytest.approx(expected)
    low, high = found["differences"]["other"]["interval"]
    assert low <= expected <= high
    with Image.open(picture) as image:
        assert image.height > 2 * 280
    table = chan(*compare).out
    assert "chance" in table
    assert "other - run: rsum" in table
    assert "given twice" in chan.complains("compare", run, run, *data, "--split", "test", code=2)


def test_wrong_use_is_one_clear_line(chan: Chan, dataset: Path, tiny_config: Path, tmp_path: Path) -> None:
    data, out = ("--data", dataset), ("--out", tmp_path / "run")
    train = ("train", *data, *out, "--config", tiny_config)
    assert "model.dims" in chan.complains(*train, "model.dims=3", code=2)
    assert "no/such" in chan.complains(*train, "--features", "no/such", code=1)
    assert "cuda:77" in chan.complains(*train, "--device", "cuda:77", code=2)
    assert "--config" in chan.complains("train", *data, *out, code=2)
    assert "shipped" in chan.complains("train", *data, *out, "--config", "nothing", code=1)
    assert "no run" in chan.complains("train", *data, *out, "--resume", code=1)
    assert "no run" in chan.complains("evaluate", tmp_path, *data, "--split", "dev", code=1)
    assert not (tmp_path / "run").exists()


def test_help_has_examples(chan: Chan) -> None:
    for command in ("train", "evaluate", "ensemble", "import", "explain"):
        assert f"Example: chan {command}" in " ".join(chan(command, "--help").out.split())


@pytest.fixture(scope="module")
def index(run: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the test split, made by a process."""
    folder = tmp_path_factory.mktemp("command") / "shapes.index"
    ids = dataset / "precomp" / "test_ids.txt"
    done = in_process("index", run, "--data", dataset, "--ids", ids, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}: 6 images, ")
    return folder


def test_an_index_is_searched_by_sentences_and_each_word_says_what_it_found(
    chan: Chan, index: Path, tmp_path: Path
) -> None:
    asked = tmp_path / "asked.txt"
    asked.write_text("a yellow triangle\n\nthe green circle\n")
    document = json.loads(chan("search", index, "a red zebra", "--queries", asked, "-k", 2, "--json").out)
    assert [found["query"] for found in document] == ["a red zebra", "a yellow triangle", "the green circle"]
    assert document[0]["unknown_words"] == ["zebra"]
    for found in document:
        assert found["exact"] is True
        assert len(found["hits"]) == 2
        assert found["hits"][0]["score"] >= found["hits"][1]["score"]
        assert [word["word"] for word in found["hits"][0]["words"]][1:-1] == found["query"].split()
        for hit in found["hits"]:
            assert Path(hit["file"]).is_file()
            assert all(len(word["box"]) == 4 for word in hit["words"])
    text = chan("search", index, "a red zebra", "-k", 2).out.splitlines()
    assert "not in the model's vocabulary: zebra" in text[1]
    assert [line.split()[:3] for line in text[2::2]] == [
        [str(rank), f"{hit['score']:.3f}", hit["id"]] for rank, hit in enumerate(document[0]["hits"], start=1)
    ]


def test_a_search_picks_its_way_and_exact_insists_on_the_scan(
    chan: Chan, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="the extra search is not installed")
    folder = tmp_path / "own.index"
    shutil.copytree(index, folder)
    monkeypatch.setattr("chan.retrieval.region_lists.ENOUGH_REGIONS", 10)
    chan("index", "--compact", "--out", folder)
    [near] = json.loads(chan("search", folder, "red", "-k", 3, "--json").out)
    [exact] = json.loads(chan("search", folder, "red", "-k", 3, "--exact", "--json").out)
    assert (near["way"], near["exact"], near["bound"]) == ("candidates", False, None)
    assert (exact["way"], exact["exact"], exact["bound"]) == ("scan", True, None)
    assert near["hits"] == exact["hits"]  # all regions are listed
    assert "(approximate, by candidates" in chan("search", folder, "red", "-k", 3).out


def test_an_index_is_searched_by_a_region_and_by_a_point_in_it(chan: Chan, index: Path) -> None:
    by_region = json.loads(chan("search", index, "--image", "17", "--region", 1, "-k", 3, "--json").out)
    by_point = json.loads(chan("search", index, "--image", "17", "--at", "90,30", "-k", 3, "--json").out)
    assert by_region["hits"] == by_point["hits"]
    assert by_region["hits"][0]["id"] == "17"
    assert by_region["hits"][0]["region"] == 1


def test_sentences_are_found_for_an_image(chan: Chan, index: Path, dataset: Path) -> None:
    captions = dataset / "precomp" / "test_caps.txt"
    document = json.loads(chan("search", index, "--image", "19", "--captions", captions, "-k", 4, "--json").out)
    assert len(document["captions"]) == 4
    assert all(hit["caption"] in captions.read_text() for hit in document["captions"])


def test_an_index_grows_and_shrinks(chan: Chan, index: Path, dataset: Path, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own.index"
    chan("index", run, "--data", dataset, "--ids", dataset / "precomp" / "dev_ids.txt", "--out", folder)
    assert json.loads(chan("index", "--data", dataset, "--add", "--out", folder, "--json").out)["added"] == 18
    gone = json.loads(chan("index", "--remove", "3", "--remove", "4", "--compact", "--out", folder, "--json").out)
    assert gone["images"] == 21
    assert "holds no image 3" in chan.complains("index", "--remove", "3", "--out", folder, code=1)


def test_what_a_search_cannot_do_is_one_line(chan: Chan, index: Path, run: Path, dataset: Path) -> None:
    assert "no word" in chan.complains("search", index, "  ", code=1)
    assert "no region" in chan.complains("search", index, "--image", "17", "--at", "500,500", code=1)
    assert "99" in chan.complains("search", index, "--image", "17", "--region", "99", code=1)
    assert "--at" in chan.complains("search", index, "--image", "17", "--at", "5", code=2)
    assert "sentences" in chan.complains("search", index, code=2)
    assert "sentences" in chan.complains("search", index, "red", "--image", "17", "--region", "1", code=2)
    assert "goes with --engine ray" in chan.complains("search", index, "red", "--ray-address", "auto", code=2)
    assert "no index" in chan.complains("search", run, "red", code=1)
    assert "--add" in chan.complains("index", run, "--data", dataset, "--out", index, code=2)
    assert "RUN" in chan.complains("index", "--data", dataset, "--out", index, code=2)
    assert "--data" in chan.complains("index", run, "--out", index, code=2)


def test_a_key_given_as_an_option_is_explained(chan: Chan, dataset: Path, tmp_path: Path) -> None:
    given = ("--data", dataset, "--out", tmp_path / "run", "--config", "scenes")
    assert "train.epochs=VALUE" in chan.complains("train", *given, "--epochs", "3", code=2)
    assert "train.batch_size=VALUE" in chan.complains("train", *given, "--batch-size=3", code=2)
    assert "expected auto, cpu, cuda or cuda:N" in chan.complains("train", *given, "--device", "gpu", code=2)
