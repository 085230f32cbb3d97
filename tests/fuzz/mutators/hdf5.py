"""Changes to the datasets, attributes and links of an HDF5 file."""

from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

OUTSIDE = "secret.bin"  # beside the input: nothing of it may come into an output

_ATTRIBUTES: tuple[Any, ...] = (
    *(0, 1, 2, -1, 1.0, float("nan"), 2**63 - 1, True, "", "x", "region-features", "1", "[]", "[7]", "{}", "null"),
    *(
        '["../secret.bin"]',
        '["features.h5"]',
        '["a.h5", "a.h5"]',
        '["/etc/passwd"]',
        '["nowhere.h5"]',
        b"\xff",
        b"text",
    ),
    *(np.arange(4), np.zeros((2, 2)), np.array([b"a", b"b"]), np.float16(1), h5py.Empty("f4"), h5py.Empty("S1")),
    *("x" * 60_000, "a\nb\x1b[31m", "é", "10" * 200, "-5", "1e12", "1000000000000", "0", "nan"),
)
_KINDS = ("f2", "f4", "f8", "g", "i1", "u1", "i4", "u4", "i8", "u8", ">f4", ">i8", "?", "S4", "V6", "c8")


def _dataset(file: h5py.File, rng: Random) -> str:
    return rng.choice([name for name, item in file.items() if isinstance(item, h5py.Dataset)])


def attribute(path: Path, rng: Random) -> None:
    """An attribute of another value or type, or none."""
    with h5py.File(path, "r+") as file:
        name = rng.choice([*file.attrs, "virtual_sources", "format_version"])
        if rng.random() < 0.15:
            del file.attrs[name]
        elif rng.random() < 0.1:
            file.attrs[name] = rng.choice((file.ref, file["features"].regionref[0:1]))
        else:
            file.attrs[name] = rng.choice(_ATTRIBUTES)


def kind(path: Path, rng: Random) -> None:
    """A dataset of another type of numbers or text."""
    with h5py.File(path, "r+") as file:
        name = _dataset(file, rng)
        values = file[name][()]
        if values.dtype.kind in "OS":
            values = np.arange(values.size, dtype=np.int64).reshape(values.shape)
        del file[name]
        chosen = rng.choice((*_KINDS, "text", "references", "vlen", "enum", "compound"))
        if chosen == "text":
            file[name] = np.full(values.shape, "a").astype(h5py.string_dtype())
        elif chosen == "references":
            file.create_dataset(name, values.shape, h5py.ref_dtype)
        elif chosen == "vlen":
            file.create_dataset(name, values.shape, h5py.vlen_dtype("f4"))
        elif chosen == "enum":
            file.create_dataset(name, values.shape, h5py.enum_dtype({"A": 0, "B": 1}, "i4"))
        elif chosen == "compound":
            file.create_dataset(name, values.shape, np.dtype([("a", "f4"), ("b", "i4")]))
        else:
            file.create_dataset(name, data=np.resize(values, values.shape).astype(chosen))


def shape(path: Path, rng: Random) -> None:
    """A dataset of another rank or length; none, one row, or with room for 10^12 rows that nobody wrote."""
    with h5py.File(path, "r+") as file:
        name = _dataset(file, rng)
        values = file[name][()]
        del file[name]
        choice = rng.randrange(10)
        if choice == 0:
            file[name] = values[:-1]
        elif choice == 1:
            file[name] = np.concatenate([values, values[:1]])
        elif choice == 2:
            file[name] = values[..., None]
        elif choice == 3:
            file[name] = values.reshape(-1)
        elif choice == 4:
            file[name] = values.reshape(-1)[0]
        elif choice == 5:
            file[name] = values[:0]
        elif choice == 6:
            file[name] = h5py.Empty(values.dtype)
        elif choice == 7:
            file[name] = values[:, :0] if values.ndim > 1 else values[1:]
        else:
            rows = rng.choice((10**6, 5 * 10**9, 2**40, 2**62))
            trailing = rng.choice((values.shape[1:], values.shape[1:], (2048,), (2**40,)))
            file.create_dataset(name, (rows, *trailing), values.dtype, chunks=tuple([1] * (1 + len(trailing))))


def values(path: Path, rng: Random) -> None:
    """Some values at the edge of their type."""
    with h5py.File(path, "r+") as file:
        name = _dataset(file, rng)
        found = file[name][()]
        place = tuple(rng.randrange(size) for size in found.shape)
        if found.dtype.kind == "f":
            found[place] = rng.choice((np.nan, np.inf, -np.inf, 1e9, -1e9, 6e4, 1e-45, 0))
        elif found.dtype.kind in "iu":
            limits = np.iinfo(found.dtype)
            found[place] = rng.choice((limits.min, limits.max, -1, 0, limits.max // 2, 10**6))
        else:
            found[place] = rng.choice(
                (b"", b"\xff\xfe", b"a\nb", b" a", b"../x", b"{", b"[]", b"null", b"7", b"\x1b[0m")
            )
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = found
        file[name].attrs.update(attributes)


def offsets(path: Path, rng: Random) -> None:
    """Offsets that fall, wrap around, or leave images without regions."""
    with h5py.File(path, "r+") as file:
        found = file["offsets"][()]
        place = rng.randrange(1, len(found))
        found[place] = rng.choice((-1, -(2**63), 2**63 - 1, found[-1] + 1, found[place - 1], 0, 10**12))
        if rng.random() < 0.3:
            found[-1] = rng.choice((10**12, 2**62, 0, -1))
        file["offsets"][...] = found


def link(path: Path, rng: Random) -> None:
    """A dataset replaced by a link: missing, circular, to another file, to a group, or by nothing."""
    with h5py.File(path, "r+") as file:
        name = rng.choice(list(file))
        other = rng.choice(list(file))
        del file[name]
        choice = rng.randrange(7)
        if choice == 0:
            file[name] = h5py.SoftLink("/nothing")
        elif choice == 1:
            file[name] = h5py.SoftLink(f"/{name}")
        elif choice == 2:
            file[name] = h5py.ExternalLink(rng.choice(("b.h5", path.name, "../b.h5", "/etc/passwd")), f"/{other}")
        elif choice == 3:
            file.create_group(name)["a"] = 1
        elif choice == 4 and other in file:
            file[name] = file[other]
        elif choice == 5:
            file[name] = h5py.SoftLink("/.")
        if rng.random() < 0.1:
            file["more"] = file["/"]


def external_storage(path: Path, rng: Random) -> None:
    """A dataset whose numbers lie in another file of the machine."""
    with h5py.File(path, "r+") as file:
        name = rng.choice(("features", "features", "boxes", "image_sizes", "offsets", "image_ids"))
        shape, dtype = file[name].shape, file[name].dtype
        size = int(np.prod(shape)) * dtype.itemsize
        del file[name]
        target = rng.choice((f"../{OUTSIDE}", OUTSIDE, "/proc/self/environ", f"/proc/self/cwd/{OUTSIDE}"))
        file.create_dataset(name, shape, dtype, external=[(target, 0, size)])


def virtual(path: Path, rng: Random) -> None:
    """A virtual dataset: of itself, of another file, of more rows than there are, with gaps."""
    with h5py.File(path, "r+") as file:
        name = rng.choice(("features", "features", "boxes", "offsets", "image_ids"))
        shape, dtype = file[name].shape, file[name].dtype
        source = rng.choice((".", path.name, "b.h5", "a.h5", "nowhere.h5", "%b.h5", "../secret.bin"))
        dataset = rng.choice((name, name, "features", "nothing", "boxes"))
        layout = h5py.VirtualLayout(shape, dtype)
        layout[: rng.choice((shape[0], shape[0] // 2))] = h5py.VirtualSource(source, dataset, shape, dtype)[
            : rng.choice((shape[0], shape[0] // 2))
        ]
        del file[name]
        file.create_virtual_dataset(name, layout, fillvalue=None if dtype.kind in "OS" else 0)
        if rng.random() < 0.7:
            file.attrs["virtual_sources"] = rng.choice((f'["{source}"]', '["b.h5"]', '["a.h5"]', "[]"))


def storage(path: Path, rng: Random) -> None:
    """The same numbers as another writer stores them: in chunks, compressed, shuffled, of the other byte order."""
    with h5py.File(path, "r+") as file:
        name = _dataset(file, rng)
        found = file[name][()]
        del file[name]
        options: dict[str, Any] = rng.choice(
            (
                {"chunks": True},
                {"compression": "gzip"},
                {"compression": "lzf", "shuffle": True},
                {"fletcher32": True},
                {"maxshape": (None,) * found.ndim},
            )
        )
        file.create_dataset(name, data=found, **options)


def more(path: Path, rng: Random) -> None:
    """A dataset more: failures that are none, a column that belongs to another schema."""
    with h5py.File(path, "r+") as file:
        name = rng.choice(("failures", "failures", "class_ids", "attribute_scores", "more"))
        if name in file:
            del file[name]
        file[name] = rng.choice(
            (
                np.array([b"{}", b"[]", b"7", b"\xff", b'{"id": 3}', b'{"id": "1", "file": "x", "reason": null}']),
                np.array([b'{"id": "1", "file": "x", "reason": "y"}']),
                np.array([b"NaN"]),
                np.zeros((0,)),
                np.arange(3.0),
                "text",
            )
        )


HDF5 = (
    attribute,
    kind,
    kind,
    shape,
    shape,
    values,
    values,
    offsets,
    link,
    external_storage,
    virtual,
    storage,
    more,
)
