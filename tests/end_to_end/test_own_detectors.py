"""A data set in COCO's form through training, evaluation and extraction, as in docs/own_detectors.md."""

import json
import sys

import h5py
import pytest

from data_tools.checks.inspection import region_labels
from data_tools.command_line import data_tools
from data_tools.configs import find_config
from data_tools.scenes.dataset import write_scenes
from data_tools.store.reading import FeatureStore
from examples.coco_scenes import CATEGORIES, COLOURS, write_coco
from extract.command_line import butd, extract_features


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process; its JSON document, or what it says if it fails."""

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            command()
        out, err = capsys.readouterr()
        return json.loads(out) if not ended.value.code else err

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        f"_BASE_: {find_config('extract', 'scenes')}\n"
        "SOLVER:\n  MAX_ITER: 2\n  WARMUP_ITERS: 1\nTEST:\n  EVAL_PERIOD: 2\n"
    )
    return path


@pytest.mark.parametrize("attributes", [True, False])
def test_a_data_set_in_cocos_form(call, config, tmp_path, attributes):
    data, run, store = tmp_path / "own", tmp_path / "run", tmp_path / "features.h5"
    write_scenes(tmp_path / "scenes", train=4, dev=2, test=2, seed=7)
    write_coco(tmp_path / "scenes", data)
    for path in (data / "annotations").iterdir():
        document = json.loads(path.read_text())
        first = document["images"][0]
        document["annotations"] = [item for item in document["annotations"] if item["image_id"] != first["id"]]
        document["annotations"].append(
            {"image_id": first["id"], "category_id": 40, "bbox": [0, 0, 99, 99], "iscrowd": 1}
        )
        if not attributes:
            del document["attributes"]
            for item in document["annotations"]:
                item.pop("attribute_ids", None)
        path.write_text(json.dumps(document))
    trained = call(butd, "train", "--config", config, "--data", data, "--out", run)
    assert trained["images"] == 4
    assert {"curves.png", "detections.html", "labels.json", "config.yaml"} <= {path.name for path in run.iterdir()}
    assert "ap50" in json.loads((run / "metrics.json").read_text().splitlines()[-1])

    network = ("--config", run)
    scores = call(butd, "evaluate", "--data", data, *network)
    assert list(scores["ap50_by_class"]) == list(CATEGORIES)
    assert list(scores["attribute_ap_by_name"]) == (list(COLOURS) if attributes else [])
    assert (scores["attribute_ap"] is None) is not attributes
    extracted = call(extract_features, data / "images", *network, "--out", store, "--num-boxes", 3)
    assert (extracted["stored"], extracted["regions"]) == (8, 24)
    with h5py.File(store) as file:
        assert file.attrs["class_names"].splitlines() == list(CATEGORIES)
        assert ("attribute_ids" in file) is attributes
    with FeatureStore(store) as opened:
        for label in region_labels(opened, 0):  # as data-tools inspect draws them
            *attribute, name, _ = label.split()
            assert name in CATEGORIES
            assert len(attribute) == attributes
            assert set(attribute) <= set(COLOURS)
    assert call(data_tools, "inspect", store)

    other = json.loads((data / "annotations" / "test.json").read_text())
    other["categories"][0]["name"] = "disc"
    (data / "annotations" / "test.json").write_text(json.dumps(other))
    refused = call(butd, "evaluate", "--data", data, *network)
    assert "the data set's classes are not the configuration's: number 0 is 'disc', and 'circle' in" in refused
