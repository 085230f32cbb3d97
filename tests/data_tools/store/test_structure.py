import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_tools.errors import InputError, UnavailableError
from data_tools.store.features import open_features
from data_tools.store.joining import join_parts, join_stores
from data_tools.store.parts import Parts
from data_tools.store.probing import check_first
from data_tools.store.reading import FeatureStore, _open_for_reading
from data_tools.store.schema import REGION_COLUMNS, Block, StoreSchema
from data_tools.store.writing import write_store

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases" / "stores"


@pytest.fixture
def store(tmp_path, make_block):
    """Two images with three regions."""
    block = make_block(["a", "b"], [2, 1])
    write_store(tmp_path / "s.h5", [block], StoreSchema.of([block]), {"selection": "all"})
    return tmp_path / "s.h5"


def replace_dataset(name, *args, **options):
    def change(file):
        file.pop(name, None)
        file.create_dataset(name, *args, **options)

    return change


def alone(name, *args, **options):
    """Without the columns whose shape would have to agree."""

    def change(file):
        for other in ("image_sizes", *REGION_COLUMNS):
            del file[other]
        replace_dataset(name, *args, **options)(file)

    return change


def nothing_but_regions(file):
    """Offsets that agree with a claim that nothing bounds."""
    alone("features", (10**12, 0), "f4")(file)
    offsets = file["offsets"][:]
    offsets[-1] = 10**12
    file["offsets"][:] = offsets


def many_ids(file):
    alone("image_ids", (5 * 10**9,), "S9")(file)
    replace_dataset("offsets", (5 * 10**9 + 1,), "i8")(file)


def not_utf8(file):
    kind = h5py.string_dtype("utf-8", 4)
    file.attrs.create("notes", np.array(b"\xff\xfe", dtype=kind), dtype=kind)


def link(name, target):
    def change(file):
        file.pop(name, None)
        file[name] = target

    return change


def wrapped(file):
    file["offsets"][:] = [0, -(2**63) + 1, 3]


def references(file):
    del file["image_ids"]
    file["image_ids"] = np.array([file.ref, file.ref], dtype=h5py.ref_dtype)


HOSTILE = {
    "external storage": ("features", replace_dataset("features", (3, 3), "f4", external=[("/etc/passwd", 0, 36)])),
    "external link": ("boxes", link("boxes", h5py.ExternalLink("other.h5", "/boxes"))),
    "soft link": ("boxes", link("boxes", h5py.SoftLink("/features"))),
    "soft-link loop": ("failures", link("failures", h5py.SoftLink("/failures"))),
    "references as ids": ("image_ids", references),
    "numbers as ids": ("image_ids", replace_dataset("image_ids", data=[1, 2])),
    "text as sizes": ("image_sizes", replace_dataset("image_sizes", data=np.full((2, 2), b"x"))),
    "text as boxes": ("boxes", replace_dataset("boxes", data=np.full((3, 4), b"x"))),
    "no rows of 8 TB": ("features", replace_dataset("features", (3, 10**12), "f4")),
    "five billion ids": ("image_ids", many_ids),
    "chunks of nothing": ("features", alone("features", (10**9, 3), "f4", chunks=(10**6, 3))),
    "many regions of no numbers": ("features", alone("features", (10**12, 0), "f4")),
    "only regions of no numbers": ("features", nothing_but_regions),
    "float64": ("features", replace_dataset("features", data=np.zeros((3, 3)))),
    "float128": ("features", replace_dataset("features", data=np.zeros((3, 3), np.longdouble))),
    "negative sizes": ("image_sizes", lambda file: file["image_sizes"].__setitem__(1, [-4, 5])),
    "offsets that wrap": ("offsets", wrapped),
    "class ids of another type": ("class_ids", replace_dataset("class_ids", data=np.zeros(3))),
    "failures that are no objects": ("failures", replace_dataset("failures", data=[b"[1]"])),
    "failures nested deeply": ("failures", replace_dataset("failures", data=[b"[" * 9999])),
    "an attribute that is a list": ("notes", lambda file: file.attrs.__setitem__("notes", [1, 2])),
    "an attribute that is no UTF-8": ("notes", not_utf8),
    "a scalar": ("features", replace_dataset("features", data=1.5)),
    "nothing": ("features", replace_dataset("features", data=h5py.Empty("f4"))),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_store_is_one_line_that_names_the_file_and_the_dataset(store, case):
    name, change = HOSTILE[case]
    with h5py.File(store, "r+") as file:
        change(file)
    with pytest.raises(InputError) as raised:
        FeatureStore(store)
    assert str(raised.value).startswith(f"{store}: ")
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [{"chunks": (2, 3)}, {"compression": "gzip"}, {"compression": "lzf"}])
def test_stores_of_other_writers_are_read(store, options):
    with h5py.File(store, "r+") as file:
        values = file["features"][:]
        replace_dataset("features", data=values.astype(">f4"), **options)(file)
        ids = [value.decode() for value in file["image_ids"][:]]
        replace_dataset("image_ids", data=ids, dtype=h5py.string_dtype())(file)
        file["theirs"] = h5py.SoftLink("/nowhere")  # what the format does not know is not looked at
    with FeatureStore(store) as opened:
        assert opened.image_ids == ["a", "b"]
        np.testing.assert_array_equal(opened.gather(np.array([0, 1])), values)
        assert "theirs" not in opened.datasets


def virtual_of(store, tmp_path, listed, read, name="v.h5"):
    with h5py.File(store) as source, h5py.File(tmp_path / name, "w") as file:
        file.attrs.update(source.attrs)
        file.attrs["virtual_sources"] = json.dumps(listed)
        for column in ("image_ids", "offsets"):
            source.copy(column, file)
        layout = h5py.VirtualLayout((3, 3), "f4")
        layout[:] = h5py.VirtualSource(*read, (3, 3))
        file.create_virtual_dataset("features", layout)
    return tmp_path / name


@pytest.mark.parametrize(
    ("listed", "read"),
    [
        (["s.h5"], ("other.h5", "features")),
        (["s.h5"], ("s.h5", "boxes")),
        (["v.h5"], ("v.h5", "features")),
        ([], ("s.h5", "features")),
        (["s.h5", "s.h5"], ("s.h5", "features")),
        ("s.h5", ("s.h5", "features")),
    ],
)
def test_a_virtual_store_reads_what_it_declares_and_nothing_else(store, tmp_path, listed, read):
    assert FeatureStore(virtual_of(store, tmp_path, ["s.h5"], ("s.h5", "features"), "good.h5")).dim == 3
    with pytest.raises(InputError, match=r"v\.h5: "):
        FeatureStore(virtual_of(store, tmp_path, listed, read))


@pytest.mark.parametrize("name", ["fuzzed_sigsegv.h5", "fuzzed_hang.h5"])
def test_a_file_at_which_hdf5_crashes_or_hangs_is_damaged(name):
    if not (CASES / name).is_file():
        pytest.skip(f"needs the real data in {name}, which the project does not carry")
    with pytest.raises(InputError, match=name):
        FeatureStore(CASES / name)


def test_many_stores_are_looked_at_by_one_process_and_once(tmp_path, store, monkeypatch):
    copies = [tmp_path / f"{number}.h5" for number in range(5)]
    for copy in copies:
        copy.write_bytes(store.read_bytes())
    started = []
    run = subprocess.run

    def count(*args, **options):
        started.append(1)
        return run(*args, **options)

    monkeypatch.setattr(subprocess, "run", count)
    FeatureStore(store)  # written by this process
    assert started == []
    check_first(copies)
    for copy in copies:
        FeatureStore(copy)
    assert started == [1]


def test_a_locked_store_is_not_called_damaged(store, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(store.read_bytes())
    with copy.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"copy\.h5: .*locked"):
            FeatureStore(copy)
    assert len(FeatureStore(copy)) == 2


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_the_reason_of_the_system_is_kept(store, monkeypatch, number):
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnavailableError, match=os.strerror(number)):
        FeatureStore(store)
    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(UnavailableError, match=os.strerror(number).lower()):
        _open_for_reading(store)


def test_parts_that_claim_any_number_are_counted_at_once(tmp_path, make_block):
    parts = Parts(tmp_path / "f.h5", {}, 10**12, 1)
    parts.write(0, make_block(["a"], [1]))
    start = time.monotonic()
    with pytest.raises(InputError, match="999999999999 of 1000000000000 parts are missing"):
        join_parts(parts.file)
    assert time.monotonic() - start < 5


def test_a_failure_of_an_image_that_another_store_holds_is_dropped(tmp_path, make_block):
    failures = ({"id": "b", "file": "b.jpg", "reason": "cut"}, {"id": "c", "file": "c.jpg", "reason": "cut"})
    one, two = make_block(["a"], [1]), make_block(["b"], [2])
    for name, block, own in (("1.h5", one, failures), ("2.h5", two, failures[1:])):
        whole = Block(block.image_ids, block.counts, block.regions, block.image_sizes, own)
        write_store(tmp_path / name, [whole], StoreSchema.of([whole]), {})
    joined = join_stores(tmp_path / "all.h5", [tmp_path / "1.h5", tmp_path / "2.h5"])
    assert joined.failures == 1
    assert FeatureStore(joined.file).failures == failures[1:]


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 36, 2048)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 36, 2048)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 1, 1)}",
        "{'descr': '<f16', 'fortran_order': False, 'shape': (2, 1, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 0, 1)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 1, 1)}",
        "((((((",
    ],
)
def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path, header):
    path = tmp_path / "dev_ims.npy"
    padded = (header + "\n").encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(16))
    (tmp_path / "dev_ids.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"dev_ims\.npy: ") as raised:
        open_features(path)
    assert "\n" not in str(raised.value)


def test_the_other_process_imports_little():
    code = "import sys; import data_tools.store.first_look; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
