import base64
import csv
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import InputError, UsageError
from data_tools.formats.conversion import Choices, convert
from data_tools.formats.tsv import TsvSource
from data_tools.formats.tsv_rows import BUTD, LXMERT
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import StoreSchema
from data_tools.store.writing import write_store


def store_of(path, block, provenance=None):
    write_store(path, [block], StoreSchema.of([block]), provenance or {"selection": "all"})
    return path


def same(path, block, columns, sizes=True):
    """Whether a store holds the block's ids, counts, these columns and nothing else."""
    with FeatureStore(path) as store:
        found = store.block()
    assert found.image_ids == block.image_ids
    np.testing.assert_array_equal(found.counts, block.counts)
    assert set(found.regions) == {"features", *columns}
    for name in found.regions:
        assert found.regions[name].tobytes() == block.regions[name].tobytes(), name
    if sizes:
        np.testing.assert_array_equal(found.image_sizes, block.image_sizes)
    else:
        assert found.image_sizes is None


LOSSY = {
    "scan": (),
    "butd": ("boxes",),
    "milvlg": ("boxes",),
    "lxmert": tuple(LXMERT.columns),
    "vinvl": ("boxes", "class_scores"),
}


TARGETS = [
    ("butd", "f.tsv"),
    ("lxmert", "f.tsv"),
    ("vinvl", "f.tsv"),
    ("milvlg", "archives"),
    ("scan", "f_ims.npy"),
]


@pytest.mark.parametrize(("kind", "target"), TARGETS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_there_and_back_is_the_same_to_the_byte(tmp_path_factory, make_block, kind, target, seed, counts, dtype):
    folder = tmp_path_factory.mktemp("convert")
    counts = [1 + counts[0]] * len(counts) if kind == "scan" else [*counts, 2]
    block = make_block([f"{n:03}é" for n in range(len(counts))], counts, dtype=dtype, seed=seed)
    there = convert(store_of(folder / "a.h5", block), folder / target, to=kind)
    assert (there.images, there.regions) == (len(counts), sum(counts))
    back = convert(folder / target, folder / "b.h5", choices=Choices(dtype=dtype))
    assert back.dtype == dtype
    same(folder / "b.h5", block, LOSSY[kind], sizes=kind != "scan")
    lost = [note for note in there.notes if "left out" in note]
    assert len(lost) == 1
    assert "provenance" in lost[0]
    assert ("class_ids" in lost[0]) == (kind != "lxmert")
    with FeatureStore(folder / "b.h5") as store:
        assert store.provenance == {"converted_from": target, "feature_dtype": dtype}


def test_what_other_programs_write_is_read(tmp_path):
    """Rows as Python's csv module writes them, fields as the public extraction scripts encode them."""
    rng = np.random.default_rng(0)
    boxes, features = rng.uniform(0, 99, (2, 4)).astype(np.float32), rng.normal(size=(2, 5)).astype(np.float32)
    ids, scores = np.array([7, 1599]), np.array([0.5, 0.25], np.float32)

    def text(array):
        return base64.b64encode(array).decode("utf-8")

    row = {
        "img_id": "COCO_val2014_000000000042", "img_h": 480, "img_w": 640, "objects_id": text(ids),
        "objects_conf": text(scores), "attrs_id": text(np.zeros(2, np.int64)), "attrs_conf": text(scores),
        "num_boxes": 2, "boxes": text(boxes), "features": text(features),
    }  # fmt: skip
    with (tmp_path / "lxmert.tsv").open("w") as file:
        csv.DictWriter(file, delimiter="\t", fieldnames=list(row)).writerow(row)
    (tmp_path / "id_mapping.json").write_text('{"42": "val2014/COCO_val2014_000000000042.jpg"}')
    convert(tmp_path / "lxmert.tsv", tmp_path / "f.h5", choices=Choices(to_ids=tmp_path / "id_mapping.json"))
    with FeatureStore(tmp_path / "f.h5") as store:
        block = store.block()
    assert block.image_ids == ["42"]
    assert block.regions["class_ids"].tolist() == [7, 1599]
    assert block.image_sizes.tolist() == [[480, 640]]
    np.testing.assert_array_equal(block.regions["features"], features)

    np.savez_compressed(
        tmp_path / "42.npz",
        x=features,
        bbox=boxes,
        num_bbox=2,
        image_h=480,
        image_w=640,
        info=np.array({"secret": Bomb()}, dtype=object),
    )
    convert(tmp_path, tmp_path / "g.h5", choices=Choices(to_ids=tmp_path / "id_mapping.json"))
    with FeatureStore(tmp_path / "g.h5") as store:
        np.testing.assert_array_equal(store.boxes(0), boxes)
        assert store.image_ids == ["42"]
    choices = Choices(to_file_names=tmp_path / "id_mapping.json")
    convert(tmp_path / "g.h5", tmp_path / "out", to="milvlg", choices=choices)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["COCO_val2014_000000000042.npz"]


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return (_explode, ())


def _explode():
    raise AssertionError("a pickle was loaded")


def test_the_bomb_explodes():
    with pytest.raises(AssertionError):
        pickle.loads(pickle.dumps(Bomb()))


def row(image_id="1", count=2, dim=3, **changes):
    fields = {
        "image_id": image_id, "image_w": "640", "image_h": "480", "num_boxes": str(count),
        "boxes": base64.b64encode(np.zeros((count, 4), "<f4").tobytes()).decode(),
        "features": base64.b64encode(np.ones((count, dim), "<f4").tobytes()).decode(),
    }  # fmt: skip
    return "\t".join({**fields, **changes}.values())


@pytest.mark.parametrize("decorate", ["{}\n", "\ufeff{}\r\n", "\t".join(BUTD.fields) + "\n{}\n\n", "{}"])
def test_headers_marks_and_line_ends_do_not_matter(tmp_path, decorate):
    (tmp_path / "f.tsv").write_bytes(decorate.format(row()).encode())
    source = TsvSource(tmp_path / "f.tsv")
    assert source.image_ids == ["1"]
    assert source.image(0).regions["features"].tolist() == [[1, 1, 1]] * 2


def test_equal_rows_count_once_and_different_ones_are_refused(tmp_path):
    (tmp_path / "f.tsv").write_text(f"{row('1')}\n{row('2')}\n{row('1')}\n")
    source = TsvSource(tmp_path / "f.tsv")
    assert source.image_ids == ["1", "2"]
    assert source.notes == [f"{tmp_path / 'f.tsv'}: 1 repeated rows were skipped"]
    (tmp_path / "f.tsv").write_text(f"{row('1')}\n{row('1', count=1)}\n")
    with pytest.raises(InputError, match="line 2: image 1 is on line 1 too"):
        TsvSource(tmp_path / "f.tsv")


GOOD = row("0") + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected the 6 fields .*, found an empty line"),
        ("{}", r"line 1: expected the 6 fields .*, found 1 field"),
        (GOOD + row()[:-30], "line 2: features: .*may be truncated|line 2: features: .* cannot be divided"),
        (GOOD + row()[:12], "line 2: 5 fields, expected 6"),
        (GOOD + row(num_boxes="3"), "line 2: boxes: 32 bytes, expected 48 for 3 regions"),
        (GOOD + row(num_boxes="two"), "line 2: num_boxes: expected a whole number, found 'two'"),
        (GOOD + row(image_h="-1"), "line 2: image_h: expected a whole number"),
        (GOOD + row(dim=4), "line 2: 4 numbers per region; the rows before have 3"),
        (GOOD + row(features="AAAA"), "line 2: features: 3 bytes cannot be divided into 2 regions"),
        (GOOD + row(image_id=""), "line 2: image_id is empty"),
        (GOOD.encode() + row("x").encode().replace(b"x", b"\xff", 1), "line 2: image_id is not UTF-8"),
        (row(count=0), "holds no region"),
    ],
)
def test_a_malformed_tsv_is_one_line_that_names_the_row(tmp_path, content, message):
    (tmp_path / "f.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        convert(tmp_path / "f.tsv", tmp_path / "f.h5")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "f.h5").exists()


def test_bad_base64_is_found_when_the_row_is_read(tmp_path):
    (tmp_path / "f.tsv").write_text(GOOD + row(boxes="*" * 43 + "="))
    with pytest.raises(InputError, match="line 2: boxes: not base64"):
        convert(tmp_path / "f.tsv", tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()


def test_class_numbers_that_are_none_are_refused(tmp_path, make_block):
    convert(store_of(tmp_path / "a.h5", make_block(["1"], [1])), tmp_path / "f.tsv", to="lxmert")
    fields = (tmp_path / "f.tsv").read_text().split("\t")
    fields[LXMERT.fields.index("attrs_id")] = base64.b64encode(np.array([2**40], "<i8").tobytes()).decode()
    (tmp_path / "f.tsv").write_text("\t".join(fields))
    with pytest.raises(InputError, match="line 1: attribute_ids: 1099511627776 is outside"):
        convert(tmp_path / "f.tsv", tmp_path / "b.h5")


def archive(path, **changes):
    good = {"x": np.ones((2, 3), np.float32), "bbox": np.zeros((2, 4), np.float32), "num_bbox": 2}
    arrays = {**good, "image_h": 4, "image_w": 5, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, r"b\.npz: lacks x; it has bbox"),
        ({"num_bbox": 3}, "num_bbox is 3; x holds 2 regions"),
        ({"num_bbox": np.zeros(2)}, "num_bbox: expected one number"),
        ({"bbox": np.zeros((3, 4))}, r"bbox: expected \(2, 4\) numbers"),
        ({"x": np.ones((2, 4), np.float32)}, r"float32 features of 4 numbers, with image sizes; a\.npz has"),
        ({"x": np.ones(2, np.float32)}, "x: expected floats of shape"),
        ({"x": np.array([Bomb(), None], dtype=object)}, "x: "),
        ({"bbox": np.array([Bomb(), None], dtype=object)}, "bbox: damaged: Object arrays cannot be loaded"),
        ({"image_h": None}, "without image sizes"),
    ],
)
def test_a_malformed_archive_is_refused(tmp_path, changes, message):
    (tmp_path / "in").mkdir()
    archive(tmp_path / "in" / "a.npz")
    archive(tmp_path / "in" / "b.npz", **changes)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "in", tmp_path / "f.h5")


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-40], lambda data: b"PK\x03\x04" + b"x" * 99]
)
def test_a_damaged_archive_is_refused(tmp_path, damage):
    archive(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(damage((tmp_path / "a.npz").read_bytes()))
    with pytest.raises(InputError, match=r"a\.npz: not a NumPy archive"):
        convert(tmp_path, tmp_path / "f.h5")


def test_splits_of_a_folder_become_arrays_and_a_store_again(tmp_path, make_block):
    block = make_block(["a", "b", "c"], [2, 2, 2])
    store = store_of(tmp_path / "features.h5", block)
    precomp = tmp_path / "precomp"
    precomp.mkdir()
    for name, ids in (("train", "a\na\n"), ("testall", "c\nb\n"), ("test", "c\n")):
        (precomp / f"{name}_ids.txt").write_text(ids)
    done = convert(store, precomp, to="scan")
    assert [path.name for path in done.files] == ["test_ims.npy", "testall_ims.npy", "train_ims.npy"]
    np.testing.assert_array_equal(np.load(precomp / "testall_ims.npy")[1], block.regions["features"][2:4])
    convert(precomp, tmp_path / "again.h5", choices=Choices(ids=precomp / "testall_ids.txt"))
    with pytest.raises(UsageError, match=r"test_ims\.npy: exists; fix: .*--overwrite"):
        convert(store, precomp, to="scan")
    with FeatureStore(tmp_path / "again.h5") as again:
        assert again.image_ids == ["c", "b"]
        np.testing.assert_array_equal(again.read(0), block.regions["features"][4:])
    np.save(precomp / "test_ims.npy", np.zeros((1, 2, 3), np.float32))
    with pytest.raises(InputError, match=r"test_ims\.npy: image c has other features"):
        convert(precomp, tmp_path / "again2.h5")


@pytest.mark.parametrize(
    ("target", "to", "choices", "error", "message"),
    [
        ("a.h5", None, Choices(), UsageError, "a.h5: exists; fix: .*--overwrite"),
        ("f.tsv", None, Choices(), UsageError, "give --to butd, lxmert, oscar or vinvl"),
        ("f", None, Choices(), UsageError, "give --to milvlg or scan"),
        ("f.tsv", "butd", Choices(dtype="float16"), UsageError, "holds float32"),
        ("f_ims.npy", None, Choices(), InputError, "image a has 2, image b has 1"),
        ("f", "scan", Choices(), UsageError, "holds no {split}_ids.txt"),
        ("g.h5", None, Choices(dtype="float16"), InputError, r"image b: 1e\+06 is too large for float16"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, make_block, target, to, choices, error, message):
    block = make_block(["a", "b"], [2, 1])
    block.regions["features"][2, 0] = 1e6
    with pytest.raises(error, match=message):
        convert(store_of(tmp_path / "a.h5", block), tmp_path / target, to, choices)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith("_ids.txt")] == ["a.h5"]


def test_formats_that_need_more_than_features_say_so(tmp_path):
    np.save(tmp_path / "dev_ims.npy", np.ones((1, 2, 3), np.float32))
    (tmp_path / "dev_ids.txt").write_text("../x\n")
    for to, message in (
        ("butd", "lacks boxes, image_sizes, which a butd TSV needs"),
        ("lxmert", "lacks class_ids"),
        ("milvlg", "lacks boxes or image_sizes"),
    ):
        with pytest.raises(UsageError, match=message):
            convert(tmp_path / "dev_ims.npy", tmp_path / "out", to)


def test_ids_that_are_no_names_are_refused(tmp_path, make_block):
    for number, (image_id, to, message) in enumerate(
        [("../x", "milvlg", "the id cannot be a file name"), ("a\tb", "butd", "cannot hold an id with a tab")]
    ):
        store = store_of(tmp_path / f"{number}.h5", make_block([image_id], [1]))
        with pytest.raises(InputError, match=message):
            convert(store, tmp_path / "out", to)


def test_names_that_the_mapping_does_not_know_are_refused(tmp_path, make_block):
    store = store_of(tmp_path / "a.h5", make_block(["cat"], [1]))
    mapping = tmp_path / "id_mapping.json"
    for text, message in (
        ('{"1": "dog.jpg"}', "matches no file"),
        ('{"1": "a/cat.jpg", "2": "b/cat.jpg"}', "matches 2 files"),
    ):
        mapping.write_text(text)
        with pytest.raises(InputError, match=f"image cat: {message}"):
            convert(store, tmp_path / "b.h5", choices=Choices(to_ids=mapping))


def test_failures_go_from_store_to_store_only(tmp_path, make_block):
    block = make_block(["a"], [1])
    failing = type(block)(block.image_ids, block.counts, block.regions, block.image_sizes, ({"id": "x"},))
    store = store_of(tmp_path / "a.h5", failing, {"selection": "s", "feature_dtype": "float32"})
    convert(store, tmp_path / "b.h5", choices=Choices(dtype="float16"))
    with FeatureStore(tmp_path / "b.h5") as again:
        assert again.failures == ({"id": "x"},)
        assert again.provenance == {"selection": "s", "feature_dtype": "float16"}
    assert "failures" in convert(store, tmp_path / "b.tsv", to="butd").notes[0]


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for images in (40, 160):
        with (tmp_path / "f.tsv").open("w") as file:
            file.writelines(row(str(n), count=36, dim=512) + "\n" for n in range(images))
        tracemalloc.start()
        convert(tmp_path / "f.tsv", tmp_path / "f.h5", choices=Choices(overwrite=True))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000


def damaged(data, content):
    """The bytes with one of them changed, taken out or put in, or cut short."""
    position = data.draw(st.integers(0, len(content) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    return data.draw(
        st.sampled_from(
            [
                content[:position] + byte + content[position + 1 :],
                content[:position] + content[position + 1 :],
                content[:position] + byte + content[position:],
                content[:position],
            ]
        )
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["tsv", "npz"]))
def test_damage_is_an_error_of_one_line_or_harmless(tmp_path_factory, data, kind):
    folder = tmp_path_factory.mktemp("damage")
    if kind == "tsv":
        file = folder / "f.tsv"
        file.write_text(f"{row('1')}\n{row('2')}\n")
    else:
        file = folder / "1.npz"
        archive(file)
    file.write_bytes(damaged(data, file.read_bytes()))
    problem, images = None, 0
    try:
        images = convert(file if kind == "tsv" else folder, folder / "f.h5").images
    except (InputError, UsageError) as error:
        problem = str(error)
    assert (folder / "f.h5").exists() == (problem is None)
    assert "\n" not in (problem or "")
    if problem is None:
        with FeatureStore(folder / "f.h5") as store:
            assert len(store) == images
