"""The model card of a run, and the records from which it is written."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from chan.config import load_config
from chan.runs import train as runs_train
from chan.runs.card import record_recall, write_card
from chan.runs.record import TrainingClock, load_record
from data_tools.captions.splits import load_split
from data_tools.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path, tiny_config: Path) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("card") / "my-run"
    config = load_config(str(tiny_config), ["train.epochs=2"])
    runs_train.train(folder, config, dataset, None, torch.device("cpu"), False)
    return folder


def side(value: float) -> dict[str, float]:
    return {"r1": value, "r5": value, "r10": value, "medr": 1, "meanr": 1}


def test_a_run_has_a_card_that_the_hub_reads(run: Path, dataset: Path) -> None:
    text = (run / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "pixels-to-recall"
    assert "# my-run" in text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    dev = [line for line in lines if line["kind"] == "dev"]
    assert [line["epoch"] for line in dev] == [1, 2]
    best = max(dev, key=lambda line: line["rsum"])
    assert f"| dev, epoch {best['epoch']}, the best | " in text
    assert f"| {best['rsum']:.1f} |" in text
    assert f"| {best['chance']['rsum']:.1f} |" in text
    train = load_split(dataset / "precomp", "train")
    assert f"train {len(train.image_ids)} images with {len(train.captions)} captions" in text
    assert os.path.sep + "tmp" not in text  # a card is published: no path of the machine
    assert "train.epochs=2" in text


def test_evaluations_are_added_and_renewed(run: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    document = {"split": "test", "folds": 1, "rsum": 123.4, "i2t": side(20.0), "t2i": side(21.0)}
    document |= {"intervals": {"rsum": [100.0, 150.0]}, "chance": {"rsum": 32.1}}
    record_recall(folder, dataset, document)
    record_recall(folder, dataset, {**document, "rsum": 99.5})
    record_recall(folder, dataset, {**document, "folds": 5, "rsum": 77.7})
    text = (folder / "README.md").read_text()
    name = dataset.resolve().name
    assert re.search(rf"\| {name}, test \| 20.0 .*\| 99.5 \| 100.0-150.0 \| 32.1 \|", text)
    assert f"| {name}, test, average of 5 folds |" in text
    assert "123.4" not in text


def test_the_seconds_of_resumed_runs_add_up(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = load_split(dataset / "precomp", "dev")
    clock = iter([10.0, 10.0, 25.0, 100.0, 100.0, 107.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    first = TrainingClock(tmp_path, dataset, split, split, 7)
    first.save()
    assert load_record(tmp_path, "training.json")["seconds"] == 15
    TrainingClock(tmp_path, dataset, split, split, 7).save()
    record = load_record(tmp_path, "training.json")
    assert record["seconds"] == 22
    assert record["splits"]["dev"] == {"images": len(split.image_ids), "captions": len(split.captions)}


def test_damaged_records_are_one_line(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name, text in (
        ("training.json", "[]"),
        ("training.json", '{"machine": 3}'),
        ("training.json", '{"seconds": "x", "machine": {}}'),
        ("recall.json", '{"test": {"rsum": "high"}}'),
        ("metrics.jsonl", '{"kind": "dev"}'),
        ("metrics.jsonl", "nothing"),
    ):
        before = (folder / name).read_bytes() if (folder / name).is_file() else b"{}"
        (folder / name).write_text(text)
        with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
            write_card(folder)
        assert "\n" not in str(caught.value)
        (folder / name).write_bytes(before)
    write_card(folder)
