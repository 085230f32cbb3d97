"""Which changes apply to which kind of file, by the name of the kind."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from tests.fuzz.mutators import arrays, documents, tables, tensors
from tests.fuzz.mutators.hdf5 import HDF5
from tests.fuzz.mutators.pictures import PICTURES
from tests.fuzz.mutators.raw import RARE, RAW

Mutator = Callable[[Path, Random], None]

_TEXT = (tables.field, tables.field, tables.fields_swapped, tables.line, tables.line, tables.delimiter,
         tables.encoding, tables.whole_rows)  # fmt: skip
_TORCH = (*[tensors.torch_value] * 3, *[tensors.torch_opcodes] * 2, tensors.torch_archive)

STRUCTURED: dict[str, tuple[Mutator, ...]] = {
    ".h5": HDF5,
    ".json": (*[documents.json_value] * 4, documents.json_depth, documents.json_text),
    ".yaml": (*[documents.yaml_value] * 2, *[documents.yaml_text] * 2, documents.yaml_line),
    ".overrides": (documents.override_value,),
    ".txt": _TEXT,
    ".csv": _TEXT,
    ".jsonl": (*_TEXT, documents.json_text),
    ".tsv": (*_TEXT, *[tables.base64_array] * 4),
    ".npy": (arrays.npy,),
    ".npz": (arrays.npz,),
    ".pth": _TORCH,
    ".pt": _TORCH,
    ".pkl": (tensors.pickle_value, tensors.pickle_opcodes),
    ".safetensors": (*[tensors.safetensors_header] * 2, tensors.safetensors_value),
    ".caffemodel": (),
    ".png": PICTURES,
    ".jpg": PICTURES,
    ".gz": (),
    ".zip": (),
}


def mutate(folder: Path, patterns: Sequence[str], rng: Random) -> list[str]:
    """Change one file of a folder, or two; what was done, as `change file`.

    A change that does not apply to the file is replaced by another. Of the patterns each is drawn as often as any
    other, however many files it matches.
    """
    files = [sorted(path for path in folder.glob(pattern) if path.is_file()) for pattern in patterns]
    done: list[str] = []
    wanted = rng.choice((1, 1, 1, 1, 2, 3))
    for _ in range(40):
        path = rng.choice(rng.choice(files))
        structured = STRUCTURED.get(path.suffix, _TEXT)
        draw = rng.random()
        family = structured if structured and draw < 0.65 else RARE if draw > 0.96 else RAW
        change = rng.choice(family)
        before = path.read_bytes() if path.is_file() else b""
        try:
            change(path, rng)
        except Exception:  # it does not apply to what this file now is
            if path.exists() and not path.is_dir():
                path.write_bytes(before)
            continue
        done.append(f"{change.__name__} {path.relative_to(folder)}")
        if len(done) == wanted:
            break
    return done
