import builtins
import collections
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from data_tools.errors import InputError
from data_tools.weights.pickles import read_pickle

MARK = "run-by-a-pickle"


class Runs:
    """Pickles into a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch():
    return Runs(os.system, f"touch {MARK}")


def python():
    return Runs(builtins.eval, f"open({MARK!r}, 'w')")


class Outside(pickle.Pickler):
    """Refers to its numbers by a persistent id."""

    def persistent_id(self, value):
        return "somewhere else" if isinstance(value, np.ndarray) else None


def refused(path):
    """Read; return the message, which must be one line, and make sure that nothing ran."""
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert not os.path.exists(MARK)
    return message


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRAPPINGS = {
    "bare": lambda evil: evil,
    "in dicts": lambda evil: {"model": {"a": np.zeros(2), "b": {"c": [(evil,)]}}},
    "as a key": lambda evil: {"model": {"a": np.zeros(2)}, "list": [evil, evil]},
    "in an ordered dict": lambda evil: collections.OrderedDict(a=evil),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize(("evil", "name"), [(touch, "system"), (python, "eval")])
def test_calls_are_refused_by_name_and_nothing_runs(here, evil, name, wrapping, protocol):
    path = here / "w.pkl"
    path.write_bytes(pickle.dumps(WRAPPINGS[wrapping](evil()), protocol=protocol))
    message = refused(path)
    assert f".{name}, not only arrays and tensors" in message


def test_the_malicious_pickles_would_have_run(here):
    """Else the tests above show nothing."""
    for evil in (touch, python):
        pickle.loads(pickle.dumps({"a": evil()}))
        assert os.path.exists(MARK)
        os.remove(MARK)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("evil", [touch, python])
def test_calls_in_files_of_torch_are_refused(here, evil, wrapping, zipped):
    path = here / "w.pth"
    torch.save(WRAPPINGS[wrapping](evil()), path, _use_new_zipfile_serialization=zipped)
    assert "not only arrays and tensors; nothing of it was run" in refused(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensors_storage_in_a_plain_pickle_is_not_read_freely(here, zipped):
    inner = here / "inner.pth"
    torch.save(touch(), inner, _use_new_zipfile_serialization=zipped)
    path = here / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Runs(torch.storage._load_from_bytes, inner.read_bytes())}}))
    refused(path)


@pytest.mark.parametrize(
    "function", [torch.load, torch.hub.load, pickle.loads, getattr, __import__, np.load, np.lib.format.read_array]
)
def test_what_could_lead_to_more_is_refused(here, function):
    path = here / "w.pkl"
    path.write_bytes(pickle.dumps({"model": Runs(function, "os")}))
    assert f".{function.__name__}, not only" in refused(path)


@pytest.mark.parametrize("encoding", ["zip", "rot13", "utf-8"])
def test_codecs_are_for_bytes_alone(here, encoding):
    import codecs

    path = here / "w.pkl"
    path.write_bytes(pickle.dumps({"a": Runs(codecs.encode, "text", encoding)}, protocol=2))
    assert f"text in the encoding {encoding}" in refused(path)


def test_references_to_the_outside_are_refused(here):
    with (here / "w.pkl").open("wb") as file:
        Outside(file).dump({"model": {"a": np.zeros(3)}})
    assert "references to something outside the file" in refused(here / "w.pkl")


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.array([None, {}], dtype=object),
        np.array([(1, None)], dtype=[("a", "i4"), ("b", "O")]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.array(["text"]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(here, array, protocol):
    (here / "w.pkl").write_bytes(pickle.dumps({"model": {"a": array}}, protocol=protocol))
    assert "an array of the NumPy type" in refused(here / "w.pkl")


def forged(code, flags):
    """A pickle of an array whose type is `code` by name and has `flags`, with an address as its one entry."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    dtype = b"cnumpy\ndtype\n(" + text(code) + b"I00\nI01\ntR"
    dtype += b"(I3\n" + text(b"|") + b"NNNI-1\nI-1\n" + b"I%d\n" % flags + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt" + text(b"b") + b"tR"
    entry = b"c_codecs\nencode\n(" + text(b"A" * 8) + text(b"latin1") + b"tR"
    return b"\x80\x02" + array + b"(I1\n(I1\nt" + dtype + b"I00\n" + entry + b"tb."


def test_no_address_in_a_file_is_taken_for_an_objects(here):
    """A pickle may claim that objects are plain bytes, or numbers references. In a process of its own, because
    NumPy, where it believes that, crashes."""
    claims = [(b"O8", 0), (b"O8", 63), (b"f8", 63), (b"f8", 1), (b"f8", 0)]
    for number, claim in enumerate(claims):
        (here / f"{number}.pkl").write_bytes(forged(*claim))
    script = (
        "import sys; from pathlib import Path; from data_tools.errors import InputError\n"
        "from data_tools.weights.pickles import read_pickle\n"
        "for path in sys.argv[1:]:\n"
        "    try: print(read_pickle(Path(path)).tolist())\n"
        "    except InputError as error: print(error)\n"
    )
    names = [f"{number}.pkl" for number in range(len(claims))]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all("an array of the NumPy type object" in line for line in lines[:2])
    assert lines[2:] == [str(np.frombuffer(b"A" * 8).tolist())] * 3  # the flags do not count


ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(4, dtype=">f4"),
    "half": np.arange(3, dtype=np.float16),
    "counts": np.array([1, -2], dtype=np.int64),
    "bytes": np.array([0, 255], dtype=np.uint8),
    "flags": np.array([True, False]),
    "one": np.array(2.5),
    "scalar": np.float32(1.25),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_come_back_as_they_were(here, protocol):
    content = {
        "model": ARRAYS,
        "__author__": "someone",
        "matching_heuristics": True,
        "order": [1, 2.0, None, b"raw"],
    }
    (here / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pickle(here / "w.pkl")
    assert read.keys() == content.keys()
    assert read["order"] == content["order"]
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read["model"][name], array, err_msg=name)
        assert read["model"][name].dtype.newbyteorder("=") == np.asarray(array).dtype.newbyteorder("=")


def test_arrays_of_python_2_are_read(here):
    """Protocol 2 as Python 2 wrote it: the contents are a byte string, which Python 3 takes for text."""
    content = np.array([1.5, -2.25], dtype="<f4").tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U" + bytes([len(content)]) + content + b"tb"
    (here / "w.pkl").write_bytes(b"\x80\x02}U\x05modelr\x01\x00\x00\x00" + array + state + b"s.")
    assert read_pickle(here / "w.pkl")["model"].tolist() == [1.5, -2.25]


TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "view": torch.arange(6.0).reshape(2, 3).T[1:],
    "half": torch.arange(3).half(),
    "bfloat16": torch.arange(3).bfloat16(),
    "counter": torch.tensor(7),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_come_back_as_they_were(here, zipped):
    torch.save({"model": TENSORS, "iteration": 3}, here / "w.pth", _use_new_zipfile_serialization=zipped)
    read = read_pickle(here / "w.pth")
    assert read["iteration"] == 3
    assert all(torch.equal(read["model"][name], tensor) for name, tensor in TENSORS.items())


def test_tensors_in_a_plain_pickle_come_back_as_they_were(here):
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != "parameter"}
    (here / "w.pkl").write_bytes(pickle.dumps(tensors, protocol=2))
    read = read_pickle(here / "w.pkl")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("form", ["pickle", "torch", "legacy torch"])
def test_a_file_cut_short_is_one_line(here, form, kept):
    path = here / "w"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": {"a": np.arange(100.0)}}, protocol=2))
    else:
        torch.save({"model": {"a": torch.arange(100.0)}}, path, _use_new_zipfile_serialization=form == "torch")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert re.search("not a readable weight file|claims a storage of 400 bytes", refused(path))


def test_an_archive_without_tensors_is_one_line(here):
    with zipfile.ZipFile(here / "w.zip", "w") as archive:
        archive.writestr("model.txt", "nothing")
    assert "not a readable weight file" in refused(here / "w.zip")


def test_an_array_with_too_few_numbers_is_one_line(here):
    whole = pickle.dumps(np.arange(3, dtype=np.float32), protocol=4)
    (here / "w.pkl").write_bytes(whole.replace(b"K\x03\x85", b"K\x07\x85"))
    assert "not a readable weight file" in refused(here / "w.pkl")


# ---- what a file claims


def resaved(path, change):
    """Change the pickle of an archive of `torch.save`, and write the archive again."""
    with zipfile.ZipFile(path) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_its_storage_is_refused(here, zipped):
    torch.save(
        {"model": {"a": torch.ones(1).expand(400, 1000, 1000)}}, here / "w", _use_new_zipfile_serialization=zipped
    )
    assert (here / "w").stat().st_size < 2500
    assert "claims a tensor of shape (400, 1000, 1000) in a storage of 1 numbers" in refused(here / "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_larger_than_the_file_is_refused(here, zipped):
    count = 123456
    torch.save({"model": {"a": torch.zeros(count)}}, here / "w", _use_new_zipfile_serialization=zipped)
    one, other = (b"J" + struct.pack("<i", number) for number in (count, 2 * count))
    if zipped:
        resaved(here / "w", lambda content: content.replace(one, other))
    else:
        (here / "w").write_bytes((here / "w").read_bytes().replace(one, other))
    assert "claims a storage of 987648 bytes, of which the file holds less" in refused(here / "w")


def test_an_archive_that_grows_a_thousandfold_is_refused(here):
    torch.save({"model": {"a": torch.zeros(5_000_000)}}, here / "w")
    with zipfile.ZipFile(here / "w") as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(here / "w", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert "claims 20 MB compressed into 0.0 MB" in refused(here / "w")


def test_many_tensors_in_one_storage_are_refused_and_tied_weights_are_not(here):
    shared = torch.zeros(100_000)
    torch.save({"model": {str(number): shared[:99_999] for number in range(50)}}, here / "w")
    assert "many tensors that share one storage" in refused(here / "w")
    torch.save({"model": {"encoder": shared, "decoder": shared}}, here / "tied")
    tied = read_pickle(here / "tied")["model"]
    assert tied["encoder"].data_ptr() == tied["decoder"].data_ptr()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(2, 2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_other_kinds_of_tensors_are_refused(here, odd, zipped):
    torch.save({"model": {"a": odd}}, here / "w", _use_new_zipfile_serialization=zipped)
    assert "not only arrays and tensors" in refused(here / "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_parameters_views_and_scalars_come_back_as_they_were(here, zipped):
    rows = torch.arange(24.0).reshape(4, 6)
    content = {
        "parameter": torch.nn.Parameter(rows.clone()),
        "view": rows.T,
        "slice": rows[1:3, ::2],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "half": rows.half(),
        "flags": rows > 3,
        "shape": rows.shape,
        "numbers": [1, 2.0, None, True, "text", b"raw"],
    }
    torch.save(content, here / "w", _use_new_zipfile_serialization=zipped)
    found = read_pickle(here / "w")
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def test_a_memo_index_takes_no_memory(here):
    """The index of the C unpickler's memo is a table that grows to it: 4 billion entries."""
    (here / "w.pkl").write_bytes(b"\x80\x02K\x01r\xff\xff\xff\xff.")
    assert read_pickle(here / "w.pkl") == 1
