import json
import math
import os
import shutil
from dataclasses import fields

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.errors import InputError
from data_tools.images.decoding import decode_bgr
from data_tools.store import reading
from data_tools.store.parts import Parts
from data_tools.store.reading import FeatureStore
from extract.build import build_detector
from extract.choices import Dtype, OnError, Precision, RunOptions
from extract.detector.proposals import Proposals
from extract.regions.selection import CaffeSelection, GivenBoxes, Grid, SweepSelection
from extract.run import batches
from extract.run.batches import BatchRunner, select_batch, select_regions
from extract.run.extraction import extract, write_parts_and_join
from extract.run.plan import ExtractionPlan
from extract.run.sources import Sources, find_sources
from extract.run.worker import LocalPartWriter

GOOD = ["100", "102", "106", "107"]


def run(detector, cfg, folder, output, *, bounds=(5, 5), boxes=None, grid=None, dtype=Dtype.FLOAT32, **options):
    """An extraction with a network that is there already."""
    rule = CaffeSelection(*bounds) if boxes is None else GivenBoxes("0")
    selection = rule if grid is None else Grid(grid)
    settings = RunOptions(**{"workers": 0, "part_size": 3, **options})
    plan = ExtractionPlan(cfg, None, selection, find_sources(folder), boxes, Precision.FP32, dtype, settings)
    runner = BatchRunner(detector, selection, plan.sources, settings, boxes, dtype)
    parts = Parts(output, plan.provenance(), len(plan.sources.images), settings.part_size, {"device": "cpu"})
    return write_parts_and_join(parts, LocalPartWriter(runner), selection.min_boxes, settings.shard)


def same_data(one, two):
    with h5py.File(one) as a, h5py.File(two) as b:
        assert sorted(a) == sorted(b)
        assert dict(a.attrs) == dict(b.attrs)
        for name in a:
            assert a[name][()].tobytes() == b[name][()].tobytes(), name


def test_good_images_are_stored_and_bad_ones_reported(detector, scenes_config, bad_images, tmp_path):
    output = tmp_path / "out" / "features.h5"
    summary = run(detector, scenes_config, bad_images, output)
    assert (summary.images, summary.stored, summary.regions, summary.short) == (8, 4, 20, 0)
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert (report["images"], report["stored"]) == (8, 4)
    reasons = {failure["id"]: (failure["file"], failure["reason"]) for failure in report["failures"]}
    assert reasons["101"] == ("empty.jpg", "the file is empty")
    assert reasons["103"][1].startswith("not an image")
    assert "truncated" in reasons["104"][1]
    assert reasons["105"] == ("missing.jpg", "no such file")
    assert len(reasons) == 4
    with FeatureStore(output) as store:
        assert store.image_ids == GOOD
        assert store.failures == tuple(report["failures"])


def test_rows_are_the_selected_proposals_of_each_image(detector, scenes_config, bad_images, tmp_path):
    run(detector, scenes_config, bad_images, tmp_path / "features.h5", bounds=(2, 9))
    names = ["a.png", "b.png", "c.png", "tiny.png"]
    with h5py.File(tmp_path / "features.h5") as file:
        for row, name in enumerate(names):
            image = decode_bgr(bad_images / name)
            pixels, geometry = detector.resizing(image)
            [found] = detector([pixels], [geometry])
            chosen = CaffeSelection(2, 9)(found).rows
            rows = slice(*file["offsets"][row : row + 2])
            assert file["image_sizes"][row].tolist() == list(image.shape[:2])
            np.testing.assert_allclose(file["boxes"][rows], found.boxes[chosen], atol=1e-3)
            np.testing.assert_allclose(
                file["features"][rows], found.features[chosen], atol=1e-5 * found.features.abs().max().item()
            )
            np.testing.assert_array_equal(file["class_ids"][rows], found.class_probabilities[chosen].argmax(dim=1))
            np.testing.assert_array_equal(
                file["attribute_ids"][rows], found.attribute_probabilities[chosen].argmax(dim=1)
            )
            probabilities = found.class_probabilities[chosen]
            np.testing.assert_allclose(file["class_scores"][rows], probabilities.max(dim=1)[0], atol=1e-4)


def test_provenance_says_how_features_were_made(detector, scenes_config, bad_images, tmp_path):
    run(detector, scenes_config, bad_images, tmp_path / "features.h5", dtype=Dtype.FLOAT16)
    with h5py.File(tmp_path / "features.h5") as file:
        attributes = dict(file.attrs)
        assert file["features"].dtype == np.float16
    assert attributes["selection"] == "caffe min=5 max=5 threshold=0.2 nms=0.3 boxes=inclusive"
    assert attributes["feature_dtype"] == "float16"
    assert attributes["weights_sha256"] == "random, seed 2022"
    versions = dict(line.split(" ") for line in attributes["versions"].splitlines())
    assert {"detectron2", "torch", "torchvision", "numpy", "pillow", "opencv", "pixels-to-recall"} == set(versions)
    assert "NUM_CLASSES: 4" in attributes["config"]
    assert attributes["class_names"].splitlines() == ["circle", "square", "triangle", "star"]
    assert attributes["precision"] == "fp32"


def test_parts_workers_and_batches_do_not_change_the_store(detector, scenes_config, bad_images, tmp_path):
    run(detector, scenes_config, bad_images, tmp_path / "a.h5", batch_size=1)
    for name, options in (
        ("b", {"batch_size": 1, "part_size": 100, "workers": 2}),
        ("c", {"batch_size": 4, "part_size": 100}),
        ("d", {"batch_size": 2, "part_size": 1}),
    ):
        run(detector, scenes_config, bad_images, tmp_path / f"{name}.h5", **options)
        same_data(tmp_path / "a.h5", tmp_path / f"{name}.h5")


@pytest.fixture
def mixed_images(tmp_path):
    """Six pictures of three shapes."""
    rng = np.random.default_rng(11)
    sizes = [(40, 60), (40, 60), (60, 40), (40, 60), (50, 50), (40, 60)]
    for number, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("given", [False, True])
def test_an_images_bytes_depend_on_no_other_image(detector, mixed_images, given):
    """Whatever the size of the batches, the order of the list and the boxes of the others."""
    sources = find_sources(mixed_images)
    boxes = {
        source.image_id: np.array([[2, 3, 20 + 2 * n, 30], [0, 0, 9, 9]], np.float32)[: 1 + n % 2]
        for n, source in enumerate(sources.images)
    }
    selection = GivenBoxes("0") if given else CaffeSelection(3, 8)

    def bytes_of_each(order, batch_size):
        images = [sources.images[position] for position in order]
        options = RunOptions(batch_size=batch_size, workers=0)
        listed = Sources(mixed_images, images)
        runner = BatchRunner(detector, selection, listed, options, boxes if given else None)
        [block] = runner.blocks([range(len(images))], lambda count: None)
        ends = np.cumsum(block.counts)[:-1]
        columns = [np.split(column, ends) for column in block.regions.values()]
        return {
            image_id: [piece.tobytes() for piece in pieces]
            for image_id, *pieces in zip(block.image_ids, *columns, strict=True)
        }

    expected = bytes_of_each(range(6), 1)
    assert len({pieces[0] for pieces in expected.values()}) == 6
    for order, batch_size in (
        ([5, 4, 3, 2, 1, 0], 2),
        ([4, 1, 5, 0, 3, 2], 3),
        ([3, 5, 1, 4, 2, 0], 5),
    ):
        assert bytes_of_each(order, batch_size) == expected, (order, batch_size)


def test_an_interrupted_run_goes_on_where_it_was(detector, scenes_config, bad_images, tmp_path, monkeypatch):
    run(detector, scenes_config, bad_images, tmp_path / "whole.h5")
    predicted = []
    original = BatchRunner._proposals

    def fail_in_the_second_part(self, batch):
        if batch[0].position >= 3:
            raise KeyboardInterrupt
        return original(self, batch)

    def count(self, batch):
        predicted.extend(item.position for item in batch)
        return original(self, batch)

    monkeypatch.setattr(BatchRunner, "_proposals", fail_in_the_second_part)
    with pytest.raises(KeyboardInterrupt):
        run(detector, scenes_config, bad_images, tmp_path / "features.h5")
    assert not (tmp_path / "features.h5").exists()
    monkeypatch.setattr(BatchRunner, "_proposals", count)
    summary = run(detector, scenes_config, bad_images, tmp_path / "features.h5")
    assert sorted(predicted) == [6, 7]  # what came before was kept
    assert summary.processed == 2
    assert len(summary.failures) == 4
    same_data(tmp_path / "whole.h5", tmp_path / "features.h5")


def test_each_part_is_opened_once_to_be_joined(detector, scenes_config, bad_images, tmp_path, monkeypatch):
    opened = []
    open_file = reading._open_for_reading

    def count(path):
        opened.append(path.name)
        return open_file(path)

    monkeypatch.setattr(reading, "_open_for_reading", count)
    output = tmp_path / "features.h5"
    run(detector, scenes_config, bad_images, output, part_size=1)
    assert opened == [f"part-{part:06d}.h5" for part in range(8)]  # and the store not at all
    opened.clear()
    run(detector, scenes_config, bad_images, output, part_size=1)
    assert opened == ["features.h5"]


def test_a_complete_store_is_left_alone_and_left_over_parts_are_removed(
    detector, scenes_config, bad_images, tmp_path, monkeypatch
):
    output = tmp_path / "features.h5"
    run(detector, scenes_config, bad_images, output)
    before = output.stat().st_mtime_ns
    (tmp_path / "features.h5.parts").mkdir()
    (tmp_path / "features.h5.parts" / "part-000000.h5").touch()
    monkeypatch.setattr(BatchRunner, "_proposals", None)
    summary = run(detector, scenes_config, bad_images, output)
    assert (summary.processed, summary.stored, len(summary.failures)) == (0, 4, 4)
    assert output.stat().st_mtime_ns == before
    assert not (tmp_path / "features.h5.parts").exists()


def test_a_store_made_otherwise_is_refused(detector, scenes_config, bad_images, tmp_path):
    run(detector, scenes_config, bad_images, tmp_path / "features.h5")
    with pytest.raises(InputError, match=r"selection was caffe min=5 max=5.*is caffe min=6 max=6"):
        run(detector, scenes_config, bad_images, tmp_path / "features.h5", bounds=(6, 6))


def test_memory_that_does_not_hold_a_batch_halves_it(detector, scenes_config, bad_images, tmp_path, monkeypatch):
    run(detector, scenes_config, bad_images, tmp_path / "one.h5", batch_size=1, part_size=100)
    sizes = []
    call = type(detector).__call__

    def small_memory(self, images, geometries):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return call(self, images, geometries)

    monkeypatch.setattr(type(detector), "__call__", small_memory)
    run(detector, scenes_config, bad_images, tmp_path / "halved.h5", batch_size=2, part_size=100)
    assert sorted(sizes) == [1, 1, 1, 1, 2, 2]  # a batch that does not fit beside another is tried alone first
    same_data(tmp_path / "one.h5", tmp_path / "halved.h5")


def test_a_batch_that_does_not_fit_beside_another_is_not_lost(
    detector, scenes_config, bad_images, tmp_path, monkeypatch
):
    run(detector, scenes_config, bad_images, tmp_path / "one.h5", batch_size=1, part_size=100)
    calls = []
    call = type(detector).__call__

    def memory_of_one(self, images, geometries):
        calls.append(len(images))
        if len(calls) == 2:  # the first one's regions are being chosen
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return call(self, images, geometries)

    monkeypatch.setattr(type(detector), "__call__", memory_of_one)
    run(detector, scenes_config, bad_images, tmp_path / "again.h5", batch_size=1, part_size=100)
    same_data(tmp_path / "one.h5", tmp_path / "again.h5")


def test_a_selection_that_does_not_fit_halves_its_batch(
    detector, scenes_config, bad_images, tmp_path, monkeypatch
):
    """The error comes from the selection's thread, where other batches may have been started meanwhile."""
    run(detector, scenes_config, bad_images, tmp_path / "one.h5", batch_size=1, part_size=100)
    sizes = []

    def little_memory(batch, *settings):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return select_batch(batch, *settings)

    monkeypatch.setattr("extract.run.batches.select_batch", little_memory)
    run(detector, scenes_config, bad_images, tmp_path / "halved.h5", batch_size=2, part_size=100)
    assert sorted(sizes) == [1, 1, 1, 1, 2, 2]
    same_data(tmp_path / "one.h5", tmp_path / "halved.h5")


@pytest.mark.parametrize(
    "message",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
    ],
)
def test_an_image_that_does_not_fit_is_reported(
    detector, scenes_config, bad_images, tmp_path, monkeypatch, message
):
    call = type(detector).__call__

    def little_memory(self, images, geometries):
        if geometries[0].original == (60, 40):
            raise RuntimeError(message)
        return call(self, images, geometries)

    monkeypatch.setattr(type(detector), "__call__", little_memory)
    summary = run(detector, scenes_config, bad_images, tmp_path / "features.h5")
    assert summary.stored == 3
    reasons = {failure["id"]: failure["reason"] for failure in summary.failures}
    assert reasons["102"] == "too large for the memory of the device"
    only_b = bad_images.parent / "b.txt"
    only_b.write_text("images/b.png\n")
    sources = find_sources(only_b)
    stopping = RunOptions(workers=0, on_error=OnError.FAIL)
    runner = BatchRunner(detector, CaffeSelection(5, 5), sources, stopping)
    with pytest.raises(InputError, match=r"b\.png: image b cannot be read: too large"):
        list(runner.blocks([range(1)], lambda count: None))


def test_a_decoder_that_dies_is_one_line(detector, scenes_config, bad_images, tmp_path, monkeypatch):
    def die(path, max_pixels):
        os._exit(9)

    monkeypatch.setattr("extract.run.loading.decode_bgr", die)
    with pytest.raises(InputError, match=r"a process that reads images died.*fix: run the same command again"):
        run(detector, scenes_config, bad_images, tmp_path / "features.h5", workers=1)


def test_a_picture_that_memory_cannot_hold_is_reported(detector, scenes_config, bad_images, tmp_path, monkeypatch):
    def no_memory(path, max_pixels):
        raise MemoryError

    monkeypatch.setattr("extract.run.loading.decode_bgr", no_memory)
    summary = run(detector, scenes_config, bad_images, tmp_path / "features.h5")
    assert {failure["reason"] for failure in summary.failures} == {"too large for this machine's memory"}


def test_pictures_of_another_folder_are_not_mixed_in(detector, scenes_config, bad_images, tmp_path):
    run(detector, scenes_config, bad_images, tmp_path / "features.h5")
    other = shutil.copytree(bad_images.parent, tmp_path / "other")
    with pytest.raises(InputError, match="the list of images changed"):
        run(detector, scenes_config, other / "images", tmp_path / "features.h5")


def test_a_box_beside_the_picture_is_reported(detector, scenes_config, bad_images, tmp_path):
    far = np.array([[500, 500, 600, 600]], np.float32)
    boxes = {"100": np.concatenate([far - 499, far]), "102": far - 600, "106": far - 499, "107": far * 0}
    summary = run(detector, scenes_config, bad_images, tmp_path / "features.h5", boxes=boxes)
    reasons = {failure["id"]: failure["reason"] for failure in summary.failures}
    assert reasons["100"] == "given box 1 is outside the image"
    assert "102" not in reasons  # its corner touches
    assert summary.stored == 3


def test_other_errors_of_the_network_are_not_hidden(detector, scenes_config, bad_images, tmp_path, monkeypatch):
    def broken(self, images, geometries):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(type(detector), "__call__", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(detector, scenes_config, bad_images, tmp_path / "features.h5")


def test_given_boxes_are_stored_in_their_order(detector, scenes_config, bad_images, tmp_path):
    boxes = {
        "100": np.array([[5, 5, 40, 30], [0, 0, 10, 10]], np.float32),
        "106": np.array([[1, 2, 30, 35]], np.float32),
        "107": np.array([[0, 0, 1, 1]], np.float32),
    }
    summary = run(detector, scenes_config, bad_images, tmp_path / "features.h5", boxes=boxes)
    assert (summary.stored, summary.regions) == (3, 4)
    reasons = {failure["id"]: failure["reason"] for failure in summary.failures}
    assert reasons["102"] == "no boxes are given for this image"
    with FeatureStore(tmp_path / "features.h5") as store:
        for row, image_id in enumerate(store.image_ids):
            np.testing.assert_array_equal(store.boxes(row), boxes[image_id])


def test_a_grid_is_a_store_of_cells(detector, scenes_config, bad_images, tmp_path):
    summary = run(detector, scenes_config, bad_images, tmp_path / "features.h5", grid=3)
    assert (summary.stored, summary.regions, summary.short, len(summary.failures)) == (4, 36, 0, 4)
    with FeatureStore(tmp_path / "features.h5") as store:
        assert store.image_ids == GOOD
        assert store.provenance["selection"] == "grid 3"
        assert store.provenance["class_names"] == store.provenance["attribute_names"] == ""
        assert store.schema.region_columns == ("boxes",)  # nothing is predicted
        for row, name in enumerate(["a.png", "b.png", "c.png", "tiny.png"]):
            image = decode_bgr(bad_images / name)
            pixels, geometry = detector.resizing(image)
            with torch.inference_mode():
                batch = detector.model.preprocess_image([{"image": pixels}])
                res4 = detector.model.backbone(batch.tensor)["res4"]
                [maps] = detector.model.roi_heads.res5(res4)
            rows, columns = (math.ceil(side / 32) for side in geometry.resized)
            assert maps.shape == (detector.dim, rows, columns)
            down = [(math.floor(i * rows / 3), math.ceil((i + 1) * rows / 3)) for i in range(3)]
            across = [(math.floor(i * columns / 3), math.ceil((i + 1) * columns / 3)) for i in range(3)]
            means = [maps[:, a:b, c:d].mean(dim=(1, 2)) for a, b in down for c, d in across]
            torch.testing.assert_close(torch.from_numpy(store.read(row)), torch.stack(means), rtol=1e-4, atol=1e-5)
            height, width = image.shape[:2]
            expected = [
                [x * width / 3, y * height / 3, (x + 1) * width / 3, (y + 1) * height / 3]
                for y in range(3)
                for x in range(3)
            ]
            np.testing.assert_allclose(store.gather_column("boxes", np.array([row])), expected, rtol=1e-6)


def test_parts_batches_shards_and_stops_do_not_change_a_grid(
    detector, scenes_config, bad_images, tmp_path, monkeypatch
):
    run(detector, scenes_config, bad_images, tmp_path / "a.h5", grid=4, batch_size=1)
    for name, options in (
        ("b", {"batch_size": 4, "part_size": 100, "workers": 2}),
        ("c", {"batch_size": 2, "part_size": 1}),
    ):
        run(detector, scenes_config, bad_images, tmp_path / f"{name}.h5", grid=4, **options)
        same_data(tmp_path / "a.h5", tmp_path / f"{name}.h5")
    for share in (2, 1):
        run(detector, scenes_config, bad_images, tmp_path / "s.h5", grid=4, shard=(share, 2))
    parts = Parts.found(tmp_path / "s.h5")
    parts.join(parts.present())
    same_data(tmp_path / "a.h5", tmp_path / "s.h5")
    original = BatchRunner._proposals

    def stop(self, batch):
        if batch[0].position >= 3:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(BatchRunner, "_proposals", stop)
    with pytest.raises(KeyboardInterrupt):
        run(detector, scenes_config, bad_images, tmp_path / "d.h5", grid=4)
    monkeypatch.setattr(BatchRunner, "_proposals", original)
    assert run(detector, scenes_config, bad_images, tmp_path / "d.h5", grid=4).processed == 2
    same_data(tmp_path / "a.h5", tmp_path / "d.h5")
    with pytest.raises(InputError, match=r"selection was grid 4, is grid 5"):
        run(detector, scenes_config, bad_images, tmp_path / "a.h5", grid=5)


def test_a_part_of_a_grid_without_any_good_image_is_joined(detector, scenes_config, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").touch()
    Image.fromarray(np.zeros((31, 57, 3), np.uint8)).save(folder / "b.png")
    summary = run(detector, scenes_config, folder, tmp_path / "features.h5", grid=2, part_size=1)
    assert (summary.stored, summary.regions) == (1, 4)


def test_boxes_only_stores_no_features(detector, scenes_config, bad_images, tmp_path):
    run(detector, scenes_config, bad_images, tmp_path / "with.h5")
    run(detector, scenes_config, bad_images, tmp_path / "without.h5", dtype=None)
    with h5py.File(tmp_path / "with.h5") as one, h5py.File(tmp_path / "without.h5") as other:
        assert other["features"].shape == (20, 0)
        for name in ("boxes", "class_ids", "class_scores", "image_ids"):
            assert one[name][()].tobytes() == other[name][()].tobytes()


def test_shards_together_write_what_one_run_writes(detector, scenes_config, bad_images, tmp_path):
    run(detector, scenes_config, bad_images, tmp_path / "whole.h5", part_size=2)
    missing, stored = [], 0
    for share in (2, 1, 3):
        summary = run(detector, scenes_config, bad_images, tmp_path / "features.h5", part_size=2, shard=(share, 3))
        missing.append(summary.parts_missing)
        stored += summary.stored
        assert not (tmp_path / "features.h5").exists()
    assert missing == [3, 1, 0]
    assert stored == 4
    parts = Parts.found(tmp_path / "features.h5")
    parts.join(parts.present())
    same_data(tmp_path / "whole.h5", tmp_path / "features.h5")


def test_the_first_bad_image_can_stop_a_run(detector, scenes_config, bad_images, tmp_path):
    with pytest.raises(InputError, match=r"empty\.jpg: image 101 cannot be read: the file is empty"):
        run(detector, scenes_config, bad_images, tmp_path / "features.h5", on_error=OnError.FAIL)


def test_images_with_too_few_proposals_are_counted(detector, scenes_config, bad_images, tmp_path):
    summary = run(detector, scenes_config, bad_images, tmp_path / "features.h5", bounds=(1000, 1000))
    assert summary.short == 4
    assert summary.regions < 4000


def test_a_run_without_any_good_image_still_ends(detector, scenes_config, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").touch()
    summary = run(detector, scenes_config, folder, tmp_path / "features.h5")
    assert (summary.stored, len(summary.failures)) == (0, 1)
    with FeatureStore(tmp_path / "features.h5") as store:
        assert store.dim == detector.dim


def test_only_images_of_one_resized_shape_share_a_batch(
    detector, scenes_config, bad_images, tmp_path, monkeypatch
):
    shapes = []
    call = type(detector).__call__

    def record(self, images, sizes):
        shapes.append([image.shape for image in images])
        return call(self, images, sizes)

    monkeypatch.setattr(type(detector), "__call__", record)
    run(detector, scenes_config, bad_images, tmp_path / "features.h5", part_size=100)
    assert sorted(map(len, shapes)) == [1, 1, 2]
    assert all(len(set(batch)) == 1 for batch in shapes)


def test_regions_are_ranked_by_the_selection(detector):
    pixels, geometry = detector.resizing(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    [found] = detector([pixels], [geometry])
    columns = select_regions(found, CaffeSelection(4, 4, threshold=2.0), Dtype.FLOAT16)
    assert columns["features"].dtype == np.float16
    assert columns["boxes"].shape == (4, 4)
    assert columns["class_ids"].dtype == np.int32


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_a_gpu_stores_what_the_cpu_stores(detector, scenes_config, mixed_images, tmp_path, batch_size):
    """Boxes are given, since rounding may decide which of two near equals is proposed."""
    boxes = {str(number): np.array([[2, 3, 30, 30 + number], [0, 0, 20, 25]], np.float32) for number in range(6)}
    on_gpu = build_detector(scenes_config, None, torch.device("cuda"))
    on_gpu.model.load_state_dict(detector.model.state_dict())
    run(detector, scenes_config, mixed_images, tmp_path / "cpu.h5", boxes=boxes, part_size=100)
    options = {"batch_size": batch_size, "part_size": 100, "workers": 2}
    summary = run(on_gpu, scenes_config, mixed_images, tmp_path / "gpu.h5", boxes=boxes, **options)
    assert summary.seconds["network"] > 0
    with h5py.File(tmp_path / "cpu.h5") as one, h5py.File(tmp_path / "gpu.h5") as other:
        assert one["image_ids"][()].tolist() == other["image_ids"][()].tolist()
        for name in ("features", "class_scores", "attribute_scores", "boxes"):
            largest = np.abs(one[name][:]).max()
            np.testing.assert_allclose(other[name][:], one[name][:], atol=1e-3 * largest)


@pytest.mark.gpu
def test_a_gpu_selects_what_the_cpu_selects():
    rng = torch.Generator().manual_seed(0)
    batch = []
    for count in (300, 64, 1):
        corner = torch.rand(count, 2, generator=rng) * 400
        boxes = torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=rng) * 100], dim=1)
        likely = (torch.randn(count, 1601, generator=rng) * 3).softmax(dim=1)[:, :-1].contiguous()
        batch.append(Proposals(boxes, boxes, boxes, likely, likely))
    on_gpu = [Proposals(*(getattr(one, field.name).cuda() for field in fields(one))) for one in batch]
    for rule in (CaffeSelection(10, 36), SweepSelection(10, 36)):
        for here, there in zip(rule.of_batch(batch), rule.of_batch(on_gpu), strict=True):
            assert here.rows.tolist() == there.rows.tolist()


FAR = {
    "one of 1e9": [[0, 0, 1e9, 1e9]],
    "one of a million": [[0, 0, 50, 30], [-1e6, -1e6, 1e6, 1e6]],
    "one of 1e30": [[0, 0, 1e30, 10]],
    "one far to the left": [[-1e9, 0, 10, 10]],
}


@pytest.mark.parametrize("boxes", FAR.values(), ids=FAR)
def test_a_box_far_beyond_the_picture_is_reported_and_reaches_no_kernel(
    detector, scenes_config, bad_images, tmp_path, boxes
):
    given = {"100": np.array([[1, 1, 9, 9]], np.float32), "102": np.array(boxes, np.float32)}
    summary = run(detector, scenes_config, bad_images, tmp_path / "f.h5", boxes=given)
    reasons = {failure["id"]: failure["reason"] for failure in summary.failures}
    assert reasons["102"] == f"given box {len(boxes) - 1} is outside the image"
    assert summary.stored == 1


@pytest.mark.parametrize("dtype", [Dtype.FLOAT16, Dtype.FLOAT32])
def test_features_that_are_no_finite_numbers_are_not_stored(
    detector, scenes_config, bad_images, tmp_path, monkeypatch, dtype
):
    """Half precision ends at 65504: what `convert` refuses is no part of a store either."""

    def columns(batch, selection, dtype):
        found = select_batch(batch, selection, Dtype.FLOAT32)
        for own in found:
            own["features"] = (own["features"] * 0 + large[len(seen)]).astype(dtype)
            seen.append(1)
        return found

    seen: list[int] = []
    large = [1.0, 1e5 if dtype is Dtype.FLOAT16 else math.inf, math.nan, 2.0]
    monkeypatch.setattr(batches, "select_batch", columns)
    with np.errstate(over="ignore"):
        summary = run(detector, scenes_config, bad_images, tmp_path / "f.h5", dtype=dtype, batch_size=1)
    assert summary.stored == 2
    assert sum("no finite numbers" in failure["reason"] for failure in summary.failures) == 2
    assert np.isfinite(FeatureStore(tmp_path / "f.h5").read(0)).all()


def test_a_picture_beyond_the_limit_is_one_failure(detector, scenes_config, bad_images, tmp_path):
    Image.new("RGB", (400, 300)).save(bad_images / "b.png")
    summary = run(detector, scenes_config, bad_images, tmp_path / "f.h5", max_pixels=100_000)
    reasons = {failure["id"]: failure["reason"] for failure in summary.failures}
    assert reasons["102"] == "400 x 300 pixels, more than the limit of 100000"
    assert summary.stored == 3


def test_one_new_picture_is_counted_and_not_called_two_hashes(detector, scenes_config, bad_images, tmp_path):
    def plan():
        settings = RunOptions(workers=0)
        return ExtractionPlan(
            scenes_config, None, CaffeSelection(5, 5), find_sources(bad_images), options=settings
        )

    extract(plan(), tmp_path / "f.h5", torch.device("cpu"))
    mapping = bad_images.parent / "id_mapping.json"
    named = json.loads(mapping.read_text())
    del named["101"]
    mapping.write_text(json.dumps({**named, "new": "a.png", "newer": "b.png"}))
    with pytest.raises(InputError, match=r"the list of images changed: 2 new, 1 gone; fix: .*--ids"):
        extract(plan(), tmp_path / "f.h5", torch.device("cpu"))
