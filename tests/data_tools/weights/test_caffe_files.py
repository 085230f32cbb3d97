import re

import caffe_writer as caffe
import numpy as np
import pytest
from caffe_writer import Layer, floats, nested, number, varint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_tools.errors import InputError
from data_tools.weights.caffe_files import is_caffe_file, read_caffe_file

RNG = np.random.default_rng(0)
LAYERS = [
    Layer("data", "Python"),
    Layer("conv1", "Convolution", [RNG.normal(size=(4, 3, 2, 2)).astype(np.float32)]),
    Layer("bn_conv1", "BatchNorm", [np.ones(4, np.float32), np.full(4, 2, np.float32), floats(0.5)], 1e-3),
    Layer("relu", "ReLU"),
    Layer("fc", "InnerProduct", [RNG.normal(size=(5, 4)).astype(np.float32), np.zeros(5, np.float32)]),
]


def one_blob(content):
    """A file with one layer whose one blob is these bytes."""
    layer = nested(1, b"res2a_branch1") + nested(2, b"Convolution") + nested(7, content)
    return nested(1, b"net") + nested(100, layer)


def shape(*sides):
    return nested(7, nested(1, b"".join(map(varint, sides))))


def refused(path, content):
    """Write and read; return the message, which must be one line that begins with the path."""
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_caffe_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    return message


@pytest.mark.parametrize("form", ["packed", "singles", "double", "double singles", "legacy", "diff"])
def test_every_way_to_write_the_same_weights(tmp_path, form):
    path = caffe.write(tmp_path / "w.caffemodel", LAYERS, form)
    assert is_caffe_file(path)
    found = read_caffe_file(path)
    assert list(found) == ["conv1", "bn_conv1", "fc"]
    for layer in LAYERS:
        for wanted, array in zip(layer.blobs, found[layer.name].blobs if layer.blobs else (), strict=True):
            sides = (1,) * (4 - wanted.ndim) * (form == "legacy") + wanted.shape
            assert array.shape == sides
            assert array.dtype == np.float32
            assert np.array_equal(array.reshape(wanted.shape), wanted)
    assert found["bn_conv1"].eps == pytest.approx(1e-3)
    assert (found["conv1"].type, found["conv1"].eps) == ("Convolution", 1e-5)


def test_a_run_of_single_numbers_may_be_interrupted(tmp_path):
    """Numbers of one field in several pieces, packed and not, with others between, are one after another."""
    values = np.arange(3000, dtype=np.float32)
    content = (
        caffe.singles(5, values[:1000]) + number(99, 1) + nested(5, values[1000:1001].tobytes())
        + caffe.singles(5, values[1001:1002]) + shape(3) + caffe.singles(6, values[:7])
        + caffe.singles(5, values[1002:]) + nested(7, number(1, 1000))
    )  # fmt: skip
    (tmp_path / "w").write_bytes(one_blob(content))
    [blob] = read_caffe_file(tmp_path / "w")["res2a_branch1"].blobs
    assert np.array_equal(blob, values.reshape(3, 1000))


def test_fields_come_in_any_order_and_unknown_ones_are_passed_over(tmp_path):
    blob = number(30, 7) + shape(2) + nested(5, floats(1, 2).tobytes()) + nested(6, b"not read")
    layer = nested(7, blob) + nested(100, b"\xff" * 9) + caffe.singles(5, floats(1)) + nested(2, b"Scale")
    content = nested(8, b"") + nested(100, layer + nested(1, b"s")) + nested(1, b"net") + number(5, 1)
    (tmp_path / "w").write_bytes(content)
    assert is_caffe_file(tmp_path / "w")
    found = read_caffe_file(tmp_path / "w")
    assert list(found) == ["s"]
    assert (found["s"].type, found["s"].blobs[0].tolist()) == ("Scale", [1, 2])


FLOATS = np.ones(6, np.float32).tobytes()
NAMED = r"layer 'res2a_branch1': blob 0: "


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(nested(5, FLOATS) + shape(2, 4), NAMED + "6 numbers for the shape 2x4", id="product"),
        pytest.param(nested(5, FLOATS) + shape(-2, -3), NAMED + "6 numbers for the shape -2x-3", id="negative"),
        pytest.param(nested(5, FLOATS) + shape(2**31, 2**31, 2**31), NAMED + "6 numbers for", id="huge"),
        pytest.param(nested(5, FLOATS) + shape(2**63 - 1, 0), NAMED + "6 numbers for", id="nothing"),
        pytest.param(nested(5, b"") + shape(0, 3), NAMED + "0 numbers for the shape 0x3", id="zero"),
        pytest.param(nested(5, FLOATS) + shape(*[1] * 33), NAMED + "more than 32 packed", id="sides"),
        pytest.param(nested(5, FLOATS) + number(1, 6), NAMED + "6 numbers for the shape 6x0x0x0", id="old"),
        pytest.param(nested(5, FLOATS), NAMED + r"6 numbers for the shape \(\)", id="no shape"),
        pytest.param(shape(2, 3), NAMED + "0 numbers for the shape 2x3", id="no numbers"),
        pytest.param(nested(5, FLOATS[:-1]) + shape(2, 3), NAMED + "23 bytes are no whole numbers", id="odd"),
        pytest.param(number(5, 1) + shape(1), NAMED + "numbers of 4 bytes with the wire type 0", id="kind"),
        pytest.param(
            caffe.singles(5, np.array([1], np.float64)) + shape(1), NAMED + "numbers of 4 bytes", id="doubles"
        ),
        pytest.param(number(7, 1), NAMED + "field 7 has the wire type 0", id="shape's kind"),
        pytest.param(varint(5 << 3 | 2) + varint(400) + FLOATS, NAMED + "a field of 400 bytes", id="overrun"),
        pytest.param(b"\x2a" + b"\xff" * 10, NAMED + "a varint that does not end", id="varint"),
        pytest.param(b"\xff" * 4, NAMED + "a varint that does not end", id="cut varint"),
        pytest.param(b"\x2b", NAMED + "a field of the wire type 3", id="group"),
        pytest.param(b"\x02\x00", NAMED + "a field of the number 0", id="number"),
        pytest.param(b"\x2d\x00", NAMED + "a field of 4 bytes, where 1 are left", id="cut number"),
        pytest.param(
            nested(5, floats(1, np.nan).tobytes()) + shape(2), NAMED + "holds a number that is not", id="nan"
        ),
        pytest.param(caffe.singles(5, floats(np.inf)) + shape(1), NAMED + "holds a number", id="inf"),
        pytest.param(
            nested(8, np.array([1e300], np.float64).tobytes()) + shape(1), NAMED + "holds a number", id="overflow"
        ),
    ],
)
def test_damaged_blobs_are_one_line_that_names_the_layer(tmp_path, content, reason):
    assert re.search(reason, refused(tmp_path / "w.caffemodel", one_blob(content)))


def layer(*fields):
    return nested(100, b"".join(fields))


NAME_A = nested(1, b"a")

GOOD = nested(7, nested(5, FLOATS) + shape(2, 3))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(layer(NAME_A, GOOD) * 2, "layer 'a': there are two of this name", id="twice"),
        pytest.param(layer(nested(1, b"a" * 300), GOOD), "layer 0: a name of 300 bytes", id="long name"),
        pytest.param(layer(nested(1, b"a\n\x1b[2J"), GOOD), "layer 0: a name that is not text", id="control"),
        pytest.param(layer(nested(1, b"\xff"), GOOD), "layer 0: a name that is not text", id="no UTF-8"),
        pytest.param(layer(number(1, 3), GOOD), "layer 0: field 1 has the wire type 0", id="kind of name"),
        pytest.param(layer(NAME_A, number(7, 3)), "layer 0: field 7 has the wire type 0", id="kind of blob"),
        pytest.param(
            layer(NAME_A, GOOD, nested(139, b"\x1d" + bytes.fromhex("0000c07f"))), "layer 0: the eps nan", id="eps"
        ),
        pytest.param(layer(NAME_A, nested(139, number(3, 1)), GOOD), "field 3 has the wire", id="eps' kind"),
        pytest.param(layer(NAME_A, GOOD) + b"\xa2\x06\x7f", "after layer 'a': a field of 127", id="cut"),
        pytest.param(layer(NAME_A, GOOD) + b"\xa2", "after layer 'a': a varint that does not", id="cut tag"),
        pytest.param(layer(NAME_A), "a Caffe network without weights", id="no weights"),
        pytest.param(nested(2, nested(4, b"conv1") + nested(6, b"")), "format before 2015; fix: Caffe's", id="V1"),
    ],
)
def test_damaged_layers_are_one_line(tmp_path, content, reason):
    assert reason in refused(tmp_path / "w.caffemodel", content)
    assert is_caffe_file(tmp_path / "w.caffemodel")


def test_more_fields_than_any_network_has(tmp_path):
    """Refused in seconds, however large the file."""
    message = refused(tmp_path / "w", layer(NAME_A, number(9, 0) * 300_000, GOOD))
    assert "more than 262144 fields" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"text\n", b"PK\x03\x04", b"\x80\x02}q\x00.", b"(dp0\nS'a'\np1\n.", bytes(100), b"\x89HDF\r\n"],
)
def test_other_files_are_not_taken_for_caffes(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    assert not is_caffe_file(tmp_path / "w")


WHOLE = caffe.network(LAYERS, "packed")
FORMS = [caffe.network(LAYERS, form) for form in ("packed", "singles", "double", "legacy")]


def test_every_cut_is_noticed_unless_it_is_between_layers(tmp_path):
    path = tmp_path / "w.caffemodel"
    read = []
    for length in range(1, len(WHOLE)):
        path.write_bytes(WHOLE[:length])
        try:
            read.append(len(read_caffe_file(path)))
        except InputError:
            continue
    assert read == [1, 2, 2]  # after conv1, its batch norm, and the ReLU behind it


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_raise_anything_else(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(FORMS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["set", "insert", "delete", "repeat"]))
        if change == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif change == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=12))
        elif change == "delete":
            del content[at : at + data.draw(st.integers(1, 40))]
        else:
            content[at:at] = content[at : at + data.draw(st.integers(1, 200))]
    read_or_refuse(tmp_path / "w.caffemodel", bytes(content) or b"x")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=200))
def test_any_bytes_as_a_blob_are_read_or_refused(tmp_path, content):
    read_or_refuse(tmp_path / "w.caffemodel", one_blob(content))


def read_or_refuse(path, content):
    """Nothing but `InputError` is raised, with one line, and what is read is numbers."""
    path.write_bytes(content)
    is_caffe_file(path)
    try:
        found = read_caffe_file(path)
    except InputError as error:
        line = str(error)
        assert line.isprintable()
    else:
        assert all(np.isfinite(blob).all() for layer in found.values() for blob in layer.blobs)
