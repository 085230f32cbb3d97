"""Changes to the bytes of any file, and to what lies at its path."""

import os
from pathlib import Path
from random import Random

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def flip_bits(path: Path, rng: Random) -> None:
    """Flip one to eight bits."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def overwrite_number(path: Path, rng: Random) -> None:
    """Overwrite 1, 2, 4 or 8 bytes by a number at the edge of a type."""
    content = bytearray(path.read_bytes())
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(_NUMBERS) % 256**size
    first = rng.randrange(max(1, len(content) - size))
    content[first : first + size] = number.to_bytes(size, rng.choice(("little", "big")))
    path.write_bytes(content)


def truncate(path: Path, rng: Random) -> None:
    """Cut the file anywhere, often near its end."""
    size = path.stat().st_size
    os.truncate(path, rng.choice((rng.randrange(size), max(0, size - rng.randint(1, 64)))))


def extend(path: Path, rng: Random) -> None:
    """Append random bytes, zeros, or the file's own beginning."""
    content = path.read_bytes()
    count = rng.randint(1, 2000)
    path.write_bytes(content + rng.choice((rng.randbytes(count), bytes(count), content[:count])))


def splice(path: Path, rng: Random) -> None:
    """Copy a piece of the file to another place, over what is there or before it."""
    content = path.read_bytes()
    first, place = rng.randrange(len(content)), rng.randrange(len(content))
    piece = content[first : first + rng.randint(1, 512)]
    kept = place + rng.choice((0, len(piece)))
    path.write_bytes(content[:place] + piece + content[kept:])


def delete_piece(path: Path, rng: Random) -> None:
    """Remove a piece."""
    content = path.read_bytes()
    first = rng.randrange(len(content))
    path.write_bytes(content[:first] + content[first + rng.randint(1, 512) :])


def clear_piece(path: Path, rng: Random) -> None:
    """Overwrite a piece with zeros, as a file system may leave it after a power cut."""
    content = bytearray(path.read_bytes())
    first = rng.randrange(len(content))
    last = min(len(content), first + rng.choice((16, 512, 4096)))
    content[first:last] = bytes(last - first)
    path.write_bytes(content)


def empty(path: Path, rng: Random) -> None:
    """Leave an empty file."""
    path.write_bytes(b"")


def other_kind(path: Path, rng: Random) -> None:
    """Replace the file by one of another kind: a page of a login, a Git LFS pointer, an archive, random bytes."""
    path.write_bytes(
        rng.choice(
            (
                b"<!DOCTYPE html><html><body>Please log in</body></html>\n",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 438\n",
                b"PK\x05\x06" + bytes(18),
                b"\x89HDF\r\n\x1a\n" + rng.randbytes(200),
                b"\x1f\x8b\x08\x00" + rng.randbytes(60),
                rng.randbytes(1000),
            )
        )
    )


def not_a_file(path: Path, rng: Random) -> None:
    """Remove the file, or leave a folder, a dangling link or a link to itself in its place."""
    path.unlink()
    kind = rng.randrange(4)
    if kind == 1:
        path.mkdir()
    elif kind >= 2:
        path.symlink_to("nowhere" if kind == 2 else path.name)


RAW = (
    flip_bits,
    flip_bits,
    overwrite_number,
    overwrite_number,
    truncate,
    extend,
    splice,
    delete_piece,
    clear_piece,
)
RARE = (empty, other_kind, not_a_file)
