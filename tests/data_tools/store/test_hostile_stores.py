"""Stores that strangers made: whatever HDF5 can be made to do, the answer is one line that names the file."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_tools.errors import InputError, UnavailableError
from data_tools.store.joining import join_stores
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import SOURCES, Block, StoreSchema
from data_tools.store.writing import write_store

SECRET = b"secret of the machine" * 100


def small() -> Block:
    random = np.random.default_rng(0)
    regions = {
        "features": random.random((5, 4), np.float32),
        "boxes": np.array([[0, 0, 9, 9]] * 5, np.float32),
        "class_ids": np.arange(5, dtype=np.int32),
    }
    return Block(["a", "b"], np.array([3, 2]), regions, np.full((2, 2), 20, np.int32))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    block = small()
    write_store(tmp_path / "s.h5", [block], StoreSchema.of([block]), {"config": "x"})
    return tmp_path / "s.h5"


def refused(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        FeatureStore(path)
    message = str(raised.value)
    assert "\n" not in message
    assert path.parent.name in message
    return message


def replace_dataset(file: h5py.File, name: str, **settings: object) -> None:
    del file[name]
    file.create_dataset(name, **settings)


def external(file: h5py.File, name: str, shape: tuple, dtype: str) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(SECRET)
    replace_dataset(file, name, shape=shape, dtype=dtype, external=[(str(secret), 0, len(SECRET))])


def links_to_itself(file: h5py.File) -> None:
    del file["features"]
    file["features"] = h5py.SoftLink("/other")
    file["other"] = h5py.SoftLink("/features")


def other_file(file: h5py.File) -> str:
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as own:
        own["features"] = np.ones((5, 4), np.float32)
        own["boxes"] = np.ones((5, 4), np.float32)
    return str(other)


def virtual(file: h5py.File, name: str, listed: list[str] | None = None, source: str | None = None) -> None:
    layout = h5py.VirtualLayout((5, 4), "<f4")
    layout[:] = h5py.VirtualSource(source or other_file(file), name, (5, 4), "<f4")
    del file[name]
    file.create_virtual_dataset(name, layout)
    if listed is not None:
        file.attrs[SOURCES] = json.dumps(listed)


def claims(file: h5py.File, name: str, rows: int, dtype: str, *trailing: int, **settings: object) -> None:
    replace_dataset(file, name, shape=(rows, *trailing), dtype=dtype, chunks=(1024, *trailing), **settings)


def wrapping(file: h5py.File) -> None:
    file["offsets"][...] = [0, -(2**63), 5]


HOSTILE = {
    "external features": lambda f: external(f, "features", (5, 4), "<f4"),
    "external boxes": lambda f: external(f, "boxes", (5, 4), "<f4"),
    "external ids": lambda f: external(f, "image_ids", (2,), "S8"),
    "external sizes": lambda f: external(f, "image_sizes", (2, 2), "<i4"),
    "a link to another file": lambda f: (
        f.pop("features"),
        f.update(features=h5py.ExternalLink("o.h5", "/features")),
    ),
    "a soft link": lambda f: (f.pop("boxes"), f.update(boxes=h5py.SoftLink("/features"))),
    "links in a circle": links_to_itself,
    "a dangling link": lambda f: (f.pop("boxes"), f.update(boxes=h5py.SoftLink("/nothing"))),
    "virtual boxes": lambda f: virtual(f, "boxes"),
    "virtual features, no sources listed": lambda f: virtual(f, "features"),
    "virtual features, others listed": lambda f: virtual(f, "features", ["elsewhere.h5"]),
    "virtual features of itself": lambda f: virtual(f, "features", ["s.h5"], "s.h5"),
    "virtual features of the same file": lambda f: virtual(f, "features", ["."], "."),
    "sources, and no virtual features": lambda f: f.attrs.__setitem__(SOURCES, '["other.h5"]'),
    "sources that are no list": lambda f: f.attrs.__setitem__(SOURCES, '{"a": 1}'),
    "sources of numbers": lambda f: f.attrs.__setitem__(SOURCES, "[1]"),
    "sources nested deep": lambda f: f.attrs.__setitem__(SOURCES, "[" * 10000),
    "ids as references": lambda f: replace_dataset(f, "image_ids", data=[f.ref, f.ref], dtype=h5py.ref_dtype),
    "ids as numbers": lambda f: replace_dataset(f, "image_ids", data=[1, 2]),
    "ids in two dimensions": lambda f: replace_dataset(f, "image_ids", data=np.array([[b"a"], [b"b"]])),
    "ids of bytes that are no text": lambda f: replace_dataset(f, "image_ids", data=np.array([b"\xff\xfe", b"b"])),
    "the same id twice": lambda f: replace_dataset(f, "image_ids", data=np.array([b"a", b"a"])),
    "ids as a scalar": lambda f: replace_dataset(f, "image_ids", data="a"),
    "five thousand million ids": lambda f: claims(f, "image_ids", 5_000_000_000, "S8"),
    "8 TB of features": lambda f: claims(f, "features", 2**40, "<f4", 2),
    "8 TB of compressed features": lambda f: claims(f, "features", 2**40, "<f4", 2, compression="gzip"),
    "8 TB of offsets": lambda f: claims(f, "offsets", 2**40, "<i8"),
    "an empty dataspace": lambda f: replace_dataset(f, "features", data=h5py.Empty("f4")),
    "offsets that wrap": wrapping,
    "offsets that fall": lambda f: f["offsets"].__setitem__(slice(None), [0, 6, 5]),
    "offsets beyond the regions": lambda f: f["offsets"].__setitem__(slice(None), [0, 3, 6]),
    "offsets from 1 on": lambda f: f["offsets"].__setitem__(slice(None), [1, 3, 5]),
    "offsets as text": lambda f: replace_dataset(f, "offsets", data=np.array([b"0", b"3", b"5"])),
    "offsets as floats": lambda f: replace_dataset(f, "offsets", data=np.array([0.0, 3.0, 5.0])),
    "offsets of one number": lambda f: replace_dataset(f, "offsets", data=np.array([0])),
    "features of float64": lambda f: replace_dataset(f, "features", data=np.ones((5, 4))),
    "features of float128": lambda f: replace_dataset(f, "features", data=np.ones((5, 4), np.longdouble)),
    "features of integers": lambda f: replace_dataset(f, "features", data=np.ones((5, 4), np.int32)),
    "features as text": lambda f: replace_dataset(f, "features", data=np.full((5, 4), b"x")),
    "features as records": lambda f: replace_dataset(f, "features", data=np.zeros((5, 4), [("a", "f4")])),
    "features in three dimensions": lambda f: replace_dataset(f, "features", data=np.ones((5, 2, 2), np.float32)),
    "too few features": lambda f: replace_dataset(f, "features", data=np.ones((4, 4), np.float32)),
    "features are a group": lambda f: (f.pop("features"), f.create_group("features")),
    "boxes as text": lambda f: replace_dataset(f, "boxes", data=np.full((5, 4), b"x")),
    "boxes of three numbers": lambda f: replace_dataset(f, "boxes", data=np.ones((5, 3), np.float32)),
    "classes as floats": lambda f: replace_dataset(f, "class_ids", data=np.ones(5)),
    "negative sizes": lambda f: f["image_sizes"].__setitem__((0, 0), -5),
    "sizes of zero": lambda f: f["image_sizes"].__setitem__((1, 1), 0),
    "sizes as text": lambda f: replace_dataset(f, "image_sizes", data=np.full((2, 2), b"20")),
    "sizes too large": lambda f: replace_dataset(f, "image_sizes", data=np.full((2, 2), 2**40)),
    "failures that are no JSON": lambda f: f.create_dataset("failures", data=["no"]),
    "failures as numbers": lambda f: f.create_dataset("failures", data=[1, 2]),
    "failures that hold numbers": lambda f: f.create_dataset("failures", data=['{"id": 1}']),
    "an attribute that is an array": lambda f: f.attrs.__setitem__("config", [1, 2, 3]),
    "an attribute that is a reference": lambda f: f.attrs.create("config", f.ref, dtype=h5py.ref_dtype),
    "a format that is an array": lambda f: f.attrs.__setitem__("format", ["region-features"]),
    "a version that is text": lambda f: f.attrs.__setitem__("format_version", "1"),
    "no format": lambda f: f.attrs.__delitem__("format"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_store_is_one_line(store: Path, change) -> None:
    with h5py.File(store, "r+") as file:
        change(file)
    start = time.monotonic()
    message = refused(store)
    assert time.monotonic() - start < 5
    assert "secret" not in message


def test_no_byte_of_another_file_reaches_what_is_joined(store: Path, tmp_path: Path) -> None:
    with h5py.File(store, "r+") as file:
        external(file, "features", (5, 4), "<f4")
    with pytest.raises(InputError, match="in another file"):
        join_stores(tmp_path / "out.h5", [store])
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("settings", [{}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True}])
def test_stores_of_other_writers_are_read(store: Path, settings: dict) -> None:
    expected = FeatureStore(store).read(1)
    with h5py.File(store, "r+") as file:
        for name in ("features", "boxes", "offsets", "class_ids"):
            replace_dataset(file, name, data=file[name][()], **settings)
        replace_dataset(file, "image_ids", data=["a", "b"], dtype=h5py.string_dtype())
        file.attrs["note"] = 3.5
    with FeatureStore(store) as changed:
        assert changed.image_ids == ["a", "b"]
        np.testing.assert_array_equal(changed.read(1), expected)


def test_a_virtual_store_of_a_changed_or_virtual_source_is_refused(store: Path, tmp_path: Path) -> None:
    shutil.copy(store, tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file["image_ids"][...] = [b"c", b"d"]
    join_stores(tmp_path / "v.h5", [store, tmp_path / "b.h5"], virtual=True)
    with FeatureStore(tmp_path / "v.h5") as joined:
        np.testing.assert_array_equal(joined.read(3), FeatureStore(tmp_path / "b.h5").read(1))
    shutil.move(tmp_path / "v.h5", tmp_path / "b.h5")  # a source that is the store itself
    assert "virtual" in refused(tmp_path / "b.h5") or "itself" in refused(tmp_path / "b.h5")


@pytest.mark.parametrize("cut", [0, 7, 100, 0.5, 0.9, 0.999])
def test_a_cut_store_is_damaged(store: Path, cut: float) -> None:
    content = store.read_bytes()
    store.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    assert "damaged" in refused(store)


def test_a_locked_store_is_not_called_damaged(store: Path) -> None:
    program = f"import h5py, time; f = h5py.File({str(store)!r}, 'r+'); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            with pytest.raises(UnavailableError, match="locked") as raised:
                FeatureStore(store)
            assert "damaged" not in str(raised.value)
        finally:
            writer.kill()
    FeatureStore(store)


def test_a_store_that_may_not_be_read_is_not_called_damaged(store: Path) -> None:
    shutil.copy(store, store.with_name("other.h5"))
    store.chmod(0)
    for folder in store.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o055)
    program = (
        f"import os, sys; sys.path[:] = {sys.path!r}\n"
        "import data_tools.store.reading as reading; from pathlib import Path\n"
        f"reading.FeatureStore(Path({str(store.with_name('other.h5'))!r}))\n"
        "from data_tools.errors import InputError; os.setuid(65534)\n"
        f"try: reading.FeatureStore(Path({str(store)!r}))\n"
        "except InputError as error: print(type(error).__name__, error, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("UnavailableError"), done.stderr
    assert "Permission denied" in done.stdout


def test_too_many_open_files_are_not_called_damage(store: Path) -> None:
    import resource

    FeatureStore(store)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        with pytest.raises(UnavailableError, match="Too many open files"):
            FeatureStore(store)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("name", ["fuzzed_sigsegv.h5", "fuzzed_hang.h5"])
def test_what_crashes_or_stops_hdf5_is_damaged(name: str, cases: Path, tmp_path: Path) -> None:
    shutil.copy(cases / "stores" / name, tmp_path / name)
    refused(tmp_path / name)


def test_a_store_that_was_changed_is_checked_again(store: Path) -> None:
    FeatureStore(store)
    with h5py.File(store, "r+") as file:
        file["offsets"][...] = [0, 9, 5]
    os.utime(store, ns=(1, 1))
    refused(store)
