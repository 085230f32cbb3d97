"""Oscar's and VinVL's TSVs: rows as their programs write them, damaged rows, and there and back."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import InputError, UsageError
from data_tools.formats.conversion import Choices, convert
from data_tools.formats.tsv import TsvSource
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

COUNT, DIM, SIZE = 3, 8, (48, 64)


def encoded(array):
    return base64.b64encode(np.asarray(array).astype("<f4").tobytes()).decode()


def boxes_of(seed):
    corners = np.random.default_rng(seed).uniform(0, 48, (COUNT, 2, 2))
    return np.sort(corners, axis=1).reshape(COUNT, 4).astype(np.float32)


def features_of(seed):
    return np.random.default_rng(seed).normal(size=(COUNT, DIM)).astype(np.float32)


def with_boxes(seed):
    """(K, D + 6) as Oscar's authors describe them in their repository's issue 10."""
    x1, y1, x2, y2 = (boxes_of(seed) / np.array([64, 48, 64, 48], np.float32)).T
    return np.column_stack([features_of(seed), x1, y1, x2, y2, x2 - x1, y2 - y1])


def oscar(image_id="1", seed=0, **changes):
    document = {"num_boxes": COUNT, "features": encoded(with_boxes(seed)), **changes}
    return f"{image_id}\t{json.dumps(document)}"


def downloaded(image_id="1", seed=0):
    return f"{image_id}\t{COUNT}\t{encoded(with_boxes(seed))}"


def objects_of(seed=0):
    boxes, features = boxes_of(seed), features_of(seed)
    return [
        {
            "rect": boxes[k].tolist(),
            "bbox_id": k,
            "class": "tree",
            "conf": 0.5 + k / 8,
            "feature": encoded(features[k]),
        }
        for k in range(COUNT)
    ]


def detected(image_id="1", seed=0, **changes):
    return f"{image_id}\t{json.dumps({'objects': objects_of(seed), 'relations': None, **changes})}"


def one_changed(**changes):
    """A row whose second object has other entries; None removes one."""
    objects = objects_of()
    objects[1] = {key: value for key, value in {**objects[1], **changes}.items() if value is not None}
    return detected(objects=objects)


def write(folder, *rows, name="train.feature.tsv"):
    (folder / name).write_bytes("".join(f"{line}\n" for line in rows).encode())
    return folder / name


def read(path, **choices):
    convert(path, path.with_suffix(".h5"), choices=Choices(**choices))
    with FeatureStore(path.with_suffix(".h5")) as store:
        return store.block()


@pytest.mark.parametrize("row", [oscar, downloaded])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train.hw.tsv", '1\t[{"height": 48, "width": 64}]'),
        ("train.feature.hw.tsv", '1\t{"height": 48, "width": 64}'),
        ("train.hw.tsv", "1\t48 64"),
        ("predictions.tsv", '1\t{"image_h": 48, "image_w": 64, "objects": []}'),
    ],
)
def test_features_that_end_in_boxes_are_divided_with_sizes_of_a_file_beside(tmp_path, row, name, line):
    write(tmp_path, line, name=name)
    found = read(write(tmp_path, row()))
    np.testing.assert_array_equal(found.regions["features"], features_of(0))
    np.testing.assert_allclose(found.regions["boxes"], boxes_of(0), rtol=1e-5)
    np.testing.assert_array_equal(found.image_sizes, [SIZE])


def test_without_image_sizes_boxes_are_left_out_with_a_note(tmp_path):
    path = write(tmp_path, oscar())
    done = convert(path, tmp_path / "f.h5")
    assert ["train.hw.tsv" in note for note in done.notes] == [True]
    with FeatureStore(tmp_path / "f.h5") as store:
        assert set(store.block().regions) == {"features"}
        np.testing.assert_array_equal(store.read(0), features_of(0))


def test_an_image_that_the_file_of_sizes_lacks_is_named(tmp_path):
    write(tmp_path, "1\t48 64", name="train.hw.tsv")
    with pytest.raises(InputError, match="line 2: image 2: its height and width are not known"):
        TsvSource(write(tmp_path, oscar("1"), oscar("2", 1)))


@pytest.mark.parametrize(
    "line", ["1", "1\t48", "1\t0 64", '1\t{"height": 48}', '1\t[{"height": 1e3, "width": 2}]', "1\t["]
)
def test_a_damaged_file_of_sizes_is_named(tmp_path, line):
    write(tmp_path, line, name="train.hw.tsv")
    with pytest.raises(InputError, match=r"train\.hw\.tsv, line 1: "):
        TsvSource(write(tmp_path, oscar()))


@pytest.mark.parametrize("form", ["object", "list"])
def test_objects_as_the_detector_writes_them_are_read(tmp_path, form):
    row = detected() if form == "object" else f"1\t{json.dumps(objects_of())}"
    path = write(tmp_path, row, name="predictions.tsv")
    found = read(path)
    np.testing.assert_array_equal(found.regions["features"], features_of(0))
    np.testing.assert_array_equal(found.regions["boxes"], boxes_of(0))
    np.testing.assert_array_equal(found.regions["class_scores"], np.array([0.5, 0.625, 0.75], np.float32))
    assert set(found.regions) == {"features", "boxes", "class_scores"}
    assert found.image_sizes is None
    assert any("names without ids" in note for note in TsvSource(path).notes)


def test_json_that_a_csv_program_has_quoted_is_read(tmp_path):
    image_id, document = oscar(image_h=48, image_w=64).split("\t")
    doubled = document.replace('"', '""')
    found = read(write(tmp_path, f'{image_id}\t"{doubled}"', f"2\t{document}"))
    assert found.image_ids == ["1", "2"]
    np.testing.assert_array_equal(found.regions["features"][:COUNT], features_of(0))


def test_images_without_regions_do_not_decide_what_a_file_holds(tmp_path):
    empty = [oscar(str(n), num_boxes=0, features="", image_h=48, image_w=64) for n in range(40)]
    found = read(write(tmp_path, *empty, oscar("x", image_h=48, image_w=64)))
    assert found.counts.tolist() == [0] * 40 + [COUNT]
    np.testing.assert_allclose(found.regions["boxes"], boxes_of(0), rtol=1e-5)


def test_features_that_end_in_no_box_stay_whole(tmp_path):
    plain = np.maximum(np.random.default_rng(0).normal(size=(COUNT, 14)), 0)
    plain[:, -6:] = 0  # differences of zeros are zeros, but these are features
    found = read(write(tmp_path, oscar(features=encoded(plain))))
    np.testing.assert_array_equal(found.regions["features"], plain.astype(np.float32))


BROKEN = with_boxes(0)
BROKEN[1, -1] += 0.5


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (oscar, oscar()[:-20], "not JSON: .*may be truncated"),
        (oscar, oscar()[:1], "1 field.s., expected an image id and JSON"),
        (oscar, "1\t" + "[" * 100_000, "not JSON"),
        (oscar, "1\t17", "objects: expected a list of JSON objects"),
        (oscar, oscar(features=None), "expected the key objects, or num_boxes and features"),
        (oscar, oscar(features="é" * 224), "features: not base64"),
        (oscar, oscar(features="\ud800" * 224), "features: not base64"),
        (oscar, oscar(features=encoded(with_boxes(0))[:-3]), "characters are not base64"),
        (oscar, oscar(features=encoded(with_boxes(0)[:, 1:])), "7 numbers per region; the rows before have 8"),
        (oscar, oscar(features=encoded(with_boxes(0)[:, :4])), "4 numbers per region, of which 6 are the box"),
        (oscar, oscar(features=encoded(BROKEN)), "features: the last 6 numbers are no box"),
        (oscar, oscar(features=encoded(with_boxes(0) * np.inf)), "features: NaN or Inf in region 0"),
        (oscar, oscar(num_boxes=4), "168 bytes cannot be divided into 4 regions"),
        (oscar, oscar(num_boxes=-3), "num_boxes: expected a whole number, found -3"),
        (oscar, oscar(num_boxes=True), "num_boxes: expected a whole number, found True"),
        (oscar, oscar(num_boxes="3"), "num_boxes: expected a whole number, found '3'"),
        (oscar, oscar(image_h=0, image_w=64), "image_h: expected a whole number of at least 1, found 0"),
        (oscar, oscar(image_h=48), "image_w: expected a whole number of at least 1, found None"),
        (oscar, oscar(" 1"), "image id: expected printable characters"),
        (
            downloaded,
            downloaded().replace("\t3\t", "\tx\t"),
            "number of regions: expected a whole number, found 'x'",
        ),
        (detected, detected(objects=7), "objects: expected a list of JSON objects"),
        (detected, detected(objects=[7]), "objects: expected a list of JSON objects"),
        (detected, one_changed(feature=7), "objects: region 1 has no feature in base64"),
        (detected, one_changed(feature=None), "objects: region 1 has no feature in base64"),
        (detected, one_changed(feature=encoded(np.ones(7))), "objects: features of 28 and of 32 bytes"),
        (detected, one_changed(rect=None), "objects: rect of region 1: expected 4 numbers"),
        (detected, one_changed(rect=[1, 2, 3]), "objects: rect of region 1: expected 4 numbers"),
        (detected, one_changed(rect=[1, 2, 3, "4"]), "objects: rect of region 1: expected 4 numbers"),
        (detected, one_changed(rect=[1, 2, 3, float("nan")]), "boxes: NaN or Inf in region 1"),
        (detected, one_changed(rect=[1, 2, 3, 10**400]), "boxes: NaN or Inf in region 1"),
        (detected, one_changed(rect=[1, 2, 3, 10**9]), "boxes: 1e.09 is far outside an image of 64 x 48 pixels"),
        (detected, oscar(features=encoded(features_of(0)), image_h=48, image_w=64), "expected the key objects"),
        (detected, one_changed(conf=[]), "objects: conf of region 1: expected a number"),
    ],
)
def test_a_wrong_row_is_named_or_skipped(tmp_path, good, bad, message):
    write(tmp_path, *(f"{n}\t48 64" for n in range(3)), name="train.hw.tsv")
    path = write(tmp_path, good("0", 1), bad, good("2", 2))
    with pytest.raises(InputError, match=f"line 2: .*{message}") as caught:
        convert(path, tmp_path / "f.h5")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    source = TsvSource(path, skip_damaged=True)
    assert source.image_ids == ["0", "2"]
    assert source.lost == 1


def test_features_of_another_type_are_named(tmp_path):
    halves = np.random.default_rng(0).normal(size=(COUNT, 512)).astype(np.float16)
    row = oscar(features=base64.b64encode(halves.tobytes()).decode())
    with pytest.raises(InputError, match="line 1: features: the numbers are float16, expected float32"):
        TsvSource(write(tmp_path, row))


@pytest.mark.parametrize(
    "content", [oscar()[:-30], "1\t{}", '1\t{"objects": []}', '1\t{"num_boxes": 0, "features": ""}']
)
def test_a_file_without_a_row_that_can_be_read_is_named(tmp_path, content):
    with pytest.raises(InputError, match=r"train\.feature\.tsv") as caught:
        TsvSource(write(tmp_path, content), skip_damaged=True)
    assert "\n" not in str(caught.value)


def store_of(path, block):
    write_store(path, [block], StoreSchema.of([block]), {"selection": "all"})
    return path


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)
def test_oscar_there_and_back(tmp_path_factory, seed, counts, size):
    folder, counts, rng = tmp_path_factory.mktemp("oscar"), [*counts, 2], np.random.default_rng(seed)
    rows = sum(counts)
    corners = rng.uniform(0, 1, (rows, 2, 2)) * (size[1], size[0])
    regions = {
        "features": rng.normal(size=(rows, DIM)).astype(np.float32),
        "boxes": np.sort(corners, axis=1).reshape(rows, 4).astype(np.float32),
    }
    sizes = np.full((len(counts), 2), size, np.int32)
    block = Block([f"{n}é" for n in range(len(counts))], np.array(counts), regions, sizes)
    convert(store_of(folder / "a.h5", block), folder / "f.tsv", to="oscar")
    convert(folder / "f.tsv", folder / "b.h5")
    with FeatureStore(folder / "b.h5") as store:
        found = store.block()
    assert found.image_ids == block.image_ids
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_array_equal(found.image_sizes, sizes)
    np.testing.assert_array_equal(found.regions["features"], regions["features"])
    np.testing.assert_allclose(found.regions["boxes"], regions["boxes"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "key"), [("oscar", "features"), ("vinvl", "objects")])
def test_the_index_gives_the_byte_at_which_each_row_begins(tmp_path, make_block, kind, key):
    block = make_block(["1", "zwölf", "3"], [2, 0, 1])
    convert(store_of(tmp_path / "a.h5", block), tmp_path / "test.feature.tsv", to=kind)
    content = (tmp_path / "test.feature.tsv").read_bytes()
    offsets = [int(line) for line in (tmp_path / "test.feature.lineidx").read_text().splitlines()]
    rows = [content[offset:].split(b"\n")[0].split(b"\t") for offset in offsets]
    assert [image_id.decode() for image_id, _ in rows] == block.image_ids
    assert all(key in json.loads(document) for _, document in rows)


def test_what_oscars_own_reader_expects_is_written(tmp_path, make_block):
    block = make_block(["1"], [2], dim=5)
    convert(store_of(tmp_path / "a.h5", block), tmp_path / "f.tsv", to="oscar")
    document = json.loads((tmp_path / "f.tsv").read_text().split("\t")[1])
    found = np.frombuffer(base64.b64decode(document["features"]), np.float32).reshape(document["num_boxes"], -1)
    height, width = block.image_sizes[0]
    x1, y1, x2, y2 = block.regions["boxes"].T
    expected = [x1 / width, y1 / height, x2 / width, y2 / height, (x2 - x1) / width, (y2 - y1) / height]
    np.testing.assert_array_equal(found[:, :5], block.regions["features"])
    np.testing.assert_allclose(found[:, 5:], np.column_stack(expected), rtol=1e-6)


@pytest.mark.parametrize(("kind", "lacking"), [("oscar", "boxes, image_sizes"), ("vinvl", "boxes")])
def test_a_source_without_boxes_cannot_be_written(tmp_path, kind, lacking):
    np.save(tmp_path / "dev_ims.npy", np.ones((1, 2, 3), np.float32))
    (tmp_path / "dev_ids.txt").write_text("1\n")
    with pytest.raises(UsageError, match=f"lacks {lacking}, which a TSV of the format {kind} needs"):
        convert(tmp_path / "dev_ims.npy", tmp_path / "f.tsv", to=kind)
    assert not (tmp_path / "f.tsv").exists()
    assert not (tmp_path / "f.lineidx").exists()
