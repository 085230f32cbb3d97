"""A good folder, and that folder with one fault at a time."""

# ruff: noqa: E501 - the table of faults reads best with one fault per line

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from data_tools.captions.collection import CaptionedImage, write_split_files
from data_tools.captions.splits import load_split
from data_tools.captions.vocabulary import Vocabulary
from data_tools.checks.verification import fix_files, verify
from data_tools.errors import InputError
from data_tools.store.parts import Parts
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import StoreSchema
from data_tools.store.writing import write_store

SPLITS = {"train": ["10", "11", "12", "13"], "dev": ["20", "21"], "testall": ["30", "31", "32"]}
SIZE = (24, 32)  # height, width
PROVENANCE = {
    "config": "A: 1", "weights_sha256": "00", "selection": "all", "feature_dtype": "float32", "class_names": "a\nb\nc",
}  # fmt: skip


@pytest.fixture(autouse=True)
def large_enough(monkeypatch, request):
    """The small data of these tests count as large, but where that is what is tested."""
    if "few" not in request.function.__name__:
        monkeypatch.setattr("data_tools.checks.splits.FEW_CAPTIONS", 0)
        monkeypatch.setattr("data_tools.checks.splits.FEW_IMAGES", 0)


def test_few_captions_and_images_are_warnings(good):
    report = verify(good)
    train, dev = report.findings
    assert report.will_train
    assert (train.file.name, dev.file.name) == ("train_caps.txt", "dev_ids.txt")
    assert "--config small" in train.fix
    assert f"{len(load_split(good / 'precomp', 'dev').image_ids)} images" in dev.message


@pytest.fixture(scope="module")
def good(tmp_path_factory, make_block):
    """A dataset with images, captions, vocabulary and features."""
    data = tmp_path_factory.mktemp("good") / "data"
    images = [
        CaptionedImage(
            i,
            f"{split}/{i}.png",
            split,
            tuple(f"a cat number {n} of {i}" for n in range(5)),
            tuple(f"{i}{n}" for n in range(5)),
        )
        for split, ids in SPLITS.items()
        for i in ids
    ]
    write_split_files(images, data, data)
    rng = np.random.default_rng(0)
    for image in images:
        path = data / "images" / image.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path)
    Vocabulary.build([caption for image in images for caption in image.captions], 1).save(data / "vocab.json")
    block = make_block([image.image_id for image in images], [3] * len(images), dim=4)
    block.image_sizes[:] = SIZE
    block.regions["boxes"][:] = rng.uniform(0, 12, (27, 4)) + np.array([0, 0, 12, 12])
    block.regions["class_ids"][:] = rng.integers(0, 3, 27)
    write_store(data / "precomp" / "features.h5", [block], StoreSchema.of([block]), PROVENANCE)
    return data


def lines(data, name, change):
    path = data / "precomp" / f"{name}.txt"
    path.write_bytes(change(path.read_bytes()))


def store(data, change):
    with h5py.File(data / "precomp" / "features.h5", "r+") as file:
        change(file)


def mapping(data, **changes):
    path = data / "id_mapping.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewritten(data, **changes):
    """The store with other columns."""
    path = data / "precomp" / "features.h5"
    with FeatureStore(path) as opened:
        block, provenance = opened.block(), opened.provenance
    changed = dataclasses.replace(block, **{name: change(block) for name, change in changes.items()})
    write_store(path, [changed], StoreSchema.of([changed]), provenance)


def without(image_id):
    """Columns of the store's block with one image fewer."""

    def drop(block):
        return [i for i in block.image_ids if i != image_id]

    return {
        "image_ids": drop,
        "counts": lambda block: block.counts[1:],
        "regions": lambda block: {name: values[3:] for name, values in block.regions.items()},
        "image_sizes": lambda block: block.image_sizes[1:],
    }


def copy(data, one, two):
    shutil.copy(data / "images" / one, data / "images" / two)


def leave_part(data):
    Parts(data / "precomp" / "features.h5", {}, 3, 3).folder.mkdir()


FAULTS = {  # what is done, check, file, line, count, fatal, words of the message
    "id not in the mapping": (lambda d: mapping(d) or lines(d, "dev_ids", lambda t: t.replace(b"21", b"99")), "mapping", "dev_ids.txt", 2, 1, True, "image 99 is not in"),
    "files missing": (lambda d: [(d / "images/train" / f"{i}.png").unlink() for i in (10, 11)], "images", "images", None, 2, True, "image 10: train/10.png: no such file"),
    "picture cut short": (lambda d: (d / "images/dev/20.png").write_bytes((d / "images/dev/20.png").read_bytes()[:900]), "images", "images", None, 1, True, "image 20"),
    "picture that is none": (lambda d: (d / "images/dev/20.png").write_text("x"), "images", "images", None, 1, True, "not an image"),
    "picture of another size": (lambda d: Image.new("RGB", (9, 9)).save(d / "images/dev/20.png"), "boxes", "features.h5", None, 1, True, "image 20: 32 x 24 pixels when extracted, now 9 x 9"),
    "caption lost": (lambda d: lines(d, "train_caps", lambda t: t.split(b"\n", 1)[1]), "captions", "train_caps.txt", None, 1, True, "19 captions for the 4 lines"),
    "captions empty": (lambda d: lines(d, "train_caps", lambda t: t.replace(b"a cat number 1 of 11", b"").replace(b"a cat number 2 of 11", b" ")), "captions", "train_caps.txt", 7, 2, False, "empty"),
    "caption id lost": (lambda d: lines(d, "dev_capids", lambda t: t[4:]), "captions", "dev_capids.txt", None, 1, True, "9 caption ids for 10 captions"),
    "caption id twice": (lambda d: lines(d, "dev_capids", lambda t: t.replace(b"201", b"200")), "captions", "dev_capids.txt", 2, 1, True, "caption id 200 is on line 1 too"),
    "id twice": (lambda d: lines(d, "train_ids", lambda t: t.replace(b"13", b"11")), "duplicates", "train_ids.txt", 4, 1, True, "image 11 is on line 2 too"),
    "splits share images": (lambda d: lines(d, "dev_ids", lambda t: t.replace(b"20", b"12")), "shared images", "dev_ids.txt", 1, 1, True, "image 12 is in train too"),
    "test is not of testall": (lambda d: lines(d, "test_ids", lambda t: b"32\n31\n30\n"), "shared images", "test_ids.txt", 1, 1, False, "not the first"),
    "not UTF-8": (lambda d: lines(d, "dev_caps", lambda t: t.replace(b"a cat number 2 of 20", b"caf\xe9")), "text", "dev_caps.txt", 3, 1, True, "not UTF-8 text at byte 4"),
    "Windows line ends": (lambda d: lines(d, "dev_caps", lambda t: t.replace(b"\n", b"\r\n")), "text", "dev_caps.txt", 1, 10, False, "Windows line end"),
    "byte-order mark": (lambda d: lines(d, "dev_ids", lambda t: b"\xef\xbb\xbf" + t), "text", "dev_ids.txt", 1, 1, False, "byte-order mark"),
    "empty file": (lambda d: lines(d, "dev_ids", lambda t: b"\n"), "text", "dev_ids.txt", None, 1, True, "the file is empty"),
    "no dev": (lambda d: (d / "precomp/dev_ids.txt").unlink(), "splits", "dev_ids.txt", None, 1, True, "no such file"),
    "mapping is a list": (lambda d: (d / "id_mapping.json").write_text("[1]"), "mapping", "id_mapping.json", None, 1, True, "expected an object"),
    "mapping leaves the folder": (lambda d: mapping(d, **{"20": "../20.png"}), "mapping", "id_mapping.json", None, 1, True, "id 20: expected a file relative to"),
    "mapping has an id twice": (lambda d: (d / "id_mapping.json").write_text((d / "id_mapping.json").read_text().replace("{", '{"20": "x.png",\n')), "mapping", "id_mapping.json", 1, 1, True, "id 20 is listed 2 times"),
    "two ids of one file": (lambda d: mapping(d, **{"21": "dev/20.png"}), "mapping", "id_mapping.json", 1, 1, False, "ids 20 and 21 have the same file"),
    "one picture in two splits": (lambda d: copy(d, "train/10.png", "dev/20.png"), "duplicates", "images", None, 1, True, "images 20 (dev) and 10 (train) have identical files"),
    "one picture twice": (lambda d: copy(d, "train/10.png", "train/11.png"), "duplicates", "images", None, 1, False, "have identical files"),
    "image without features": (lambda d: rewritten(d, **without("10")), "features", "train_ids.txt", 1, 1, True, "features.h5 lacks image 10"),
    "no features": (lambda d: (d / "precomp/features.h5").unlink(), "features", "precomp", None, 2, True, "holds neither features.h5 nor dev_ims.npy"),
    "store and arrays": (lambda d: np.save(d / "precomp/train_ims.npy", np.ones((4, 3, 4), np.float32)), "features", "precomp", None, 1, True, "holds both"),
    "store cut short": (lambda d: (d / "precomp/features.h5").write_bytes((d / "precomp/features.h5").read_bytes()[:9000]), "features", "precomp", None, 1, True, "not a readable HDF5 file"),
    "NaN": (lambda d: store(d, lambda f: f["features"].__setitem__((4, 1), np.nan)), "NaN", "features.h5", None, 1, True, "image 11, region 1: NaN"),
    "Inf": (lambda d: store(d, lambda f: f["features"].__setitem__((0, 3), np.inf)), "Inf", "features.h5", None, 1, True, "image 10, region 0: Inf"),
    "zeros": (lambda d: store(d, lambda f: f["features"].__setitem__(slice(2, 4), 0)), "zeros", "features.h5", None, 2, True, "image 10, region 2: zeros only"),
    "no regions": (lambda d: store(d, lambda f: f["offsets"].__setitem__(1, 0)), "region counts", "features.h5", None, 1, True, "image 10 has no region"),
    "offsets fall": (lambda d: store(d, lambda f: f["offsets"].__setitem__(1, 9)), "features", "precomp", None, 1, True, "offsets: expected"),
    "same features": (lambda d: store(d, lambda f: f["features"].__setitem__(slice(3, 6), f["features"][:3])), "duplicates", "features.h5", None, 1, False, "images 10 and 11 have equal features"),
    "box reversed": (lambda d: store(d, lambda f: f["boxes"].__setitem__((0, 0), 31)), "boxes", "features.h5", None, 1, True, "image 10: the corners of a box are reversed"),
    "box outside": (lambda d: store(d, lambda f: f["boxes"].__setitem__((0, 2), 99)), "boxes", "features.h5", None, 1, False, "exceeds the image of 32 x 24 pixels"),
    "box NaN": (lambda d: store(d, lambda f: f["boxes"].__setitem__((0, 2), np.nan)), "boxes", "features.h5", None, 1, True, "a box is NaN"),
    "no provenance": (lambda d: store(d, lambda f: f.attrs.__delitem__("weights_sha256")), "provenance", "features.h5", None, 1, False, "lacks the attributes weights_sha256"),
    "provenance of another type": (lambda d: store(d, lambda f: f.attrs.__setitem__("feature_dtype", "float16")), "provenance", "features.h5", None, 1, True, "feature_dtype is float16, but the features are float32"),
    "class without a name": (lambda d: store(d, lambda f: f["class_ids"].__setitem__(3, 7)), "provenance", "features.h5", None, 1, True, "class 7 has no name"),
    "failed images": (lambda d: rewritten(d, failures=lambda b: ({"id": "77", "reason": "cut"},)), "provenance", "features.h5", None, 1, False, "image 77 could not be extracted: cut"),
    "parts left": (lambda d: leave_part(d), "parts", "features.h5.parts", None, 1, False, "unfinished extraction"),
    "foreign vocabulary": (lambda d: Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "chat"]).save(d / "vocab.json"), "vocabulary", "vocab.json", None, 1, True, "has 0.0% of the words"),
    "no vocabulary": (lambda d: (d / "vocab.json").write_text("[]"), "vocabulary", "vocab.json", None, 1, True, "expected SCAN's vocabulary"),
}  # fmt: skip


def test_nothing_is_found_in_the_good_folder(good):
    report = verify(good, sample=None)
    assert report.findings == []
    assert report.will_train
    assert "train: 4 images, 20 captions" in report.facts


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_where_it_is(good, tmp_path, name):
    damage, check, file, line, count, fatal, words = FAULTS[name]
    data = tmp_path / "data"
    shutil.copytree(good, data)
    damage(data)
    report = verify(data, sample=None)
    found = [finding for finding in report.findings if words in finding.message]
    assert len(found) == 1, report.findings
    (finding,) = found
    assert (finding.check, finding.file.name, finding.line) == (check, file, line)
    assert (finding.count, finding.fatal) == (count, fatal)
    first, second = str(finding).split("\n")
    assert first.startswith(f"{'error' if fatal else 'warning'}: {finding.file}")
    assert second == f"    fix: {finding.fix}"
    assert finding.fix
    assert "\n" not in finding.message
    assert report.will_train == (not any(other.fatal for other in report.findings))
    if fatal:
        assert not report.will_train


def test_arrays_of_other_dimensions_are_found(good, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(good, data)
    (data / "precomp" / "features.h5").unlink()
    rng = np.random.default_rng(0)
    for name, images, dim in (("train", 4, 4), ("dev", 2, 4), ("testall", 3, 4), ("test", 3, 4)):
        np.save(data / "precomp" / f"{name}_ims.npy", rng.normal(size=(images, 3, dim)))
    assert verify(data).findings == []
    np.save(data / "precomp" / "dev_ims.npy", rng.normal(size=(2, 3, 5)))
    (finding,) = verify(data).findings
    assert (finding.check, finding.file.name, finding.fatal) == ("dimensions", "precomp", True)
    assert "5 in dev_ims.npy, 4 in test_ims.npy" in finding.message


def test_a_fix_changes_no_text_that_is_read(good, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(good, data)
    before = load_split(data / "precomp", "dev")
    lines(data, "dev_caps", lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    lines(data, "dev_ids", lambda text: text.replace(b"\n", b"\r\n"))
    assert [path.name for path in fix_files(verify(data))] == ["dev_ids.txt", "dev_caps.txt"]
    assert verify(data).findings == []
    for name in ("dev_ids.txt", "dev_caps.txt"):
        assert (data / "precomp" / name).read_bytes() == (good / "precomp" / name).read_bytes()
    after = load_split(data / "precomp", "dev")
    assert (after.image_ids, after.captions) == (before.image_ids, before.captions)


def test_a_sample_decodes_as_many_images(good, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(good, data)
    for file in (data / "images" / "train").iterdir():
        file.write_text(f"{file.name} is no picture")
    assert [finding.count for finding in verify(data, sample=None).findings] == [4]
    assert verify(data, sample=0).findings == []
    assert any("9 files" in fact and "3 of them decoded" in fact for fact in verify(data, sample=3).facts)


def test_a_folder_without_splits_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no split"):
        verify(tmp_path)


def test_the_real_photographs_pass(flickr8k):
    report = verify(flickr8k, sample=50)
    assert report.findings == []
    assert any("800 images, 36 regions x 1280 float16" in fact for fact in report.facts)
