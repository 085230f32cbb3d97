"""Boxes of a store hidden, its features disturbed as published ones may differ, and the boxes looked for again."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.checks.comparison import box_ious
from data_tools.errors import InputError, UsageError
from data_tools.images.decoding import decode_bgr
from data_tools.store.parts import Parts
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import StoreSchema
from data_tools.store.writing import write_store
from extract.choices import RunOptions
from extract.command_line import butd
from extract.regions.recovery import match_rows
from extract.regions.selection import CaffeSelection
from extract.run.batches import BatchRunner
from extract.run.extraction import write_parts_and_join
from extract.run.recovery import Recovered, fingerprint, open_published, plan_recovery
from extract.run.sources import find_sources
from extract.run.worker import LocalPartWriter

REGIONS = 12
SPLITS = {"train": 4, "dev": 2, "test": 3}


def regions_of(detector, folder):
    """The features and boxes of each image by id, as a block."""
    runner = BatchRunner(
        detector, CaffeSelection(REGIONS, REGIONS), find_sources(folder / "images"), RunOptions(workers=0)
    )
    [block] = runner.blocks([range(len(runner.images))], lambda count: None)
    return block


def hide(block, folder, disturb=lambda features: features):
    """Write the features of a block as SCAN's arrays, one per split; the folder."""
    folder.mkdir(exist_ok=True)
    features = disturb(block.regions["features"]).reshape(len(block.image_ids), REGIONS, -1)
    first = 0
    for name in sorted(SPLITS):
        last = min(first + SPLITS[name], len(features))
        np.save(folder / f"{name}_ims.npy", features[first:last])
        (folder / f"{name}_ids.txt").write_text("".join(f"{i}\n" for i in block.image_ids[first:last]))
        first = last
    return folder


def recover(detector, precomp, images, store, **options):
    """A recovery with a network that is there already; what it found."""
    settings = RunOptions(workers=0, part_size=2)
    plan = plan_recovery(precomp, images, config="scenes", weights="random", options=settings, **options)
    runner = BatchRunner(detector, plan.selection, plan.sources, settings, None, plan.dtype)
    parts = Parts(store, plan.provenance(), len(plan.sources.images), settings.part_size, {"device": "cpu"})
    write_parts_and_join(parts, LocalPartWriter(runner), plan.selection.min_boxes)
    return Recovered.of_store(store)


def ious(store, block):
    """Of each of the block's rows the overlap of its box with the recovered one, 0 where there is none."""
    with FeatureStore(store) as opened:
        rows = opened.rows(block.image_ids)
        found = np.concatenate([opened.boxes(row) for row in rows.tolist()])
    return box_ious(np.nan_to_num(found), block.regions["boxes"])


@pytest.fixture(scope="module")
def block(detector, scenes):
    return regions_of(detector, scenes)


def ties(detector, folder, block):
    """Which rows have the very feature of another proposal of their image: their boxes cannot be told apart."""
    tied = []
    for number, source in enumerate(find_sources(folder / "images").images):
        pixels, geometry = detector.resizing(decode_bgr(folder / "images" / source.file))
        [proposals] = detector([pixels], [geometry])
        own = torch.from_numpy(block.regions["features"][number * REGIONS : (number + 1) * REGIONS])
        tied.append((own[:, None] == proposals.features[None]).all(dim=2).sum(dim=1) > 1)
    return torch.cat(tied).numpy()


def noisy(features):
    return features * (1 + 1e-3 * np.random.default_rng(0).normal(size=features.shape)).astype(np.float32)


@pytest.mark.parametrize(
    "disturb", [lambda features: features, lambda features: features.astype(np.float16), noisy]
)
def test_the_boxes_are_found_again(detector, scenes, block, tmp_path, disturb):
    precomp = hide(block, tmp_path / "precomp", disturb)
    found = recover(detector, precomp, scenes / "images", tmp_path / "out.h5")
    distinct = ~ties(detector, scenes, block)
    assert distinct.mean() > 0.9
    assert (ious(tmp_path / "out.h5", block) > 0.99)[distinct].all()
    assert (found.rows, found.recovered, found.incomplete, found.without) == (9 * REGIONS, 9 * REGIONS, 0, 0)
    assert 0.99999 < found.mean_confidence <= 1


def test_the_published_features_are_kept_to_the_byte(detector, scenes, block, tmp_path):
    """In their order and type, whatever the detector; classes are what it predicts from them."""
    precomp = hide(block, tmp_path / "precomp", lambda features: noisy(features).astype(np.float16))
    recover(detector, precomp, scenes / "images", tmp_path / "out.h5", min_cosine=1.0)
    with FeatureStore(tmp_path / "out.h5") as store:
        assert store.dtype == np.float16
        for name in SPLITS:
            array = np.load(precomp / f"{name}_ims.npy")
            rows = store.rows((precomp / f"{name}_ids.txt").read_text().split())
            assert store.gather(rows).tobytes() == array.tobytes()
        order = store.rows(block.image_ids)
        same = store.gather_column("class_ids", order) == block.regions["class_ids"]
        assert same.mean() > 0.95
        scores = store.gather_column("attribute_scores", order)
        np.testing.assert_allclose(scores[same], block.regions["attribute_scores"][same], atol=1e-2)
        assert store.provenance["selection"].startswith("boxes recovered for the published features ")
        assert store.provenance["feature_dtype"] == "float16"


def test_nothing_is_found_in_the_wrong_pictures(detector, scenes, block, tmp_path):
    """And what a row without a box holds is no place: the whole picture, of no confidence."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(5)
    for source in find_sources(scenes / "images").images:
        pixels = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save((tmp_path / "images" / source.image_id).with_suffix(".png"))
    precomp = hide(block, tmp_path / "precomp")
    found = recover(detector, precomp, tmp_path / "images", tmp_path / "out.h5")
    assert (found.rows, found.recovered, found.incomplete, found.without) == (9 * REGIONS, 0, 0, 9)
    assert "0 of 108 rows" in found.as_text()
    assert "check that the images" in found.as_text()
    with FeatureStore(tmp_path / "out.h5") as store:
        columns = store.block().regions
        assert np.isnan(np.asarray(store.boxes(3))).all()
    assert not columns["box_confidence"].any()
    assert (columns["boxes"] == [0, 0, 160, 120]).all()


def test_rows_that_no_proposal_fits_are_counted(detector, scenes, block, tmp_path):
    features = block.regions["features"].copy()
    strange = np.zeros(len(features), bool)
    strange[[0, 5, *range(2 * REGIONS, 3 * REGIONS)]] = True  # two of the first image, all of the third
    features[strange] = np.random.default_rng(1).normal(size=(strange.sum(), features.shape[1]))
    precomp = hide(replace(block, regions=block.regions | {"features": features}), tmp_path / "precomp")
    found = recover(detector, precomp, scenes / "images", tmp_path / "out.h5")
    assert (found.rows - found.recovered, found.incomplete, found.without) == (REGIONS + 2, 1, 1)
    assert found.as_json()["without_box"] == REGIONS + 2
    with FeatureStore(tmp_path / "out.h5") as store:
        confidence = store.gather_column("box_confidence", store.rows(block.image_ids))
    np.testing.assert_array_equal(confidence == 0, strange)


def test_a_stopped_run_resumes_to_the_same_bytes(detector, scenes, block, tmp_path, monkeypatch):
    precomp = hide(block, tmp_path / "precomp")
    recover(detector, precomp, scenes / "images", tmp_path / "a.h5")
    write, written = Parts.write, []

    def killed(parts, part, content):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(part)
        return write(parts, part, content)

    monkeypatch.setattr(Parts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        recover(detector, precomp, scenes / "images", tmp_path / "b.h5")
    monkeypatch.undo()
    assert len(list((tmp_path / "b.h5.parts").glob("part-*.h5"))) == 2
    recover(detector, precomp, scenes / "images", tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with pytest.raises(InputError, match="made in another way: selection was"):
        recover(detector, precomp, scenes / "images", tmp_path / "b.h5", min_cosine=0.5)


def test_a_split_is_one_array_and_its_copies_count_once(block, tmp_path):
    precomp = hide(block, tmp_path / "precomp")
    dev = open_published(precomp, "dev")
    assert dev.image_ids == (precomp / "dev_ids.txt").read_text().split()
    expected = fingerprint(dev)
    assert fingerprint(open_published(precomp / "dev_ims.npy")) == expected
    assert len(open_published(precomp)) == 9
    np.save(precomp / "dev_ims.npy", np.load(precomp / "dev_ims.npy").repeat(5, axis=0))
    assert fingerprint(open_published(precomp, "dev")) == expected
    with pytest.raises(UsageError, match="--split goes with a folder of arrays"):
        open_published(precomp / "dev_ims.npy", "dev")


def test_features_that_do_not_fit_are_one_line(scenes, block, tmp_path):
    precomp = hide(block, tmp_path / "precomp", lambda features: features[:, :100])
    with pytest.raises(InputError, match="features of 100 numbers; those of scenes have 512"):
        plan_recovery(precomp, scenes / "images", config="scenes", weights="random")
    other = [f"x{number}" for number in range(len(block.image_ids))]
    hide(replace(block, image_ids=other), precomp)
    with pytest.raises(InputError, match="none of its 9 ids is the id of an image"):
        plan_recovery(precomp, scenes / "images", config="scenes", weights="random")


def test_a_store_without_boxes_is_published_too(detector, scenes, block, tmp_path, monkeypatch, capsys):
    bare = replace(block, regions={"features": block.regions["features"]}, image_sizes=None)
    write_store(tmp_path / "bare.h5", [bare], StoreSchema.of([bare]), {})
    recover(detector, tmp_path / "bare.h5", scenes / "images", tmp_path / "out.h5")
    assert (ious(tmp_path / "out.h5", block) > 0.99).mean() > 0.9
    found = fingerprint(open_published(hide(block, tmp_path / "precomp")))
    assert found != fingerprint(open_published(tmp_path / "bare.h5"))  # splits have another order
    arguments = ["recover-boxes", tmp_path / "bare.h5", "--images", scenes / "images", "--config", "scenes"]
    arguments += ["--weights", "random", "--overwrite", "--out", tmp_path / "bare.h5"]
    monkeypatch.setattr(sys, "argv", ["butd", *map(str, arguments)])
    with pytest.raises(SystemExit):
        butd()
    assert "holds the published features; fix:" in capsys.readouterr().err
    assert (tmp_path / "bare.h5").is_file()


def test_rows_that_are_no_numbers_match_nothing():
    features = torch.tensor([[float("nan"), 1], [0, 0], [3, 4]])
    rows, matched, cosines = match_rows(features, torch.tensor([[3.0, 4], [1, 0]]))
    assert len(rows) == 2
    assert dict(zip(rows.tolist(), zip(matched.tolist(), cosines.tolist(), strict=True), strict=True))[2] == (0, 1)


def test_the_command_recovers_and_reports(scenes, block, tmp_path, monkeypatch, capsys):
    precomp, store = hide(block, tmp_path / "precomp"), tmp_path / "out.h5"
    arguments = ["recover-boxes", str(precomp), "--images", str(scenes / "images"), "--config", "scenes"]
    arguments += ["--weights", "random", "--device", "cpu", "--workers", "0"]
    arguments += ["--split", "dev", "--out", str(store)]
    run = subprocess.run(
        [sys.executable, "-c", "from extract.command_line import butd; butd()", *arguments, "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    summary = json.loads(run.stdout)
    assert (summary["images"], summary["stored"], summary["failures"]) == (2, 2, [])
    assert summary["boxes"]["rows"] == summary["boxes"]["recovered"] == 2 * REGIONS
    monkeypatch.setattr(sys, "argv", ["butd", *arguments])  # once more: the store is complete
    with pytest.raises(SystemExit) as ended:
        butd()
    assert ended.value.code == 0
    assert f"boxes: {2 * REGIONS} of {2 * REGIONS} rows (100.00%)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["butd", *arguments, "--min-cosine", "1", "--overwrite"])
    np.save(precomp / "dev_ims.npy", np.random.default_rng(0).normal(size=(2, REGIONS, 512)).astype(np.float32))
    with pytest.raises(SystemExit) as ended:
        butd()
    assert ended.value.code == 1
    assert "no box was recovered; fix:" in capsys.readouterr().out
