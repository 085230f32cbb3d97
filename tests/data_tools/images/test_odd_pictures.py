"""Pictures as cameras, archives and strangers leave them."""

import os
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_tools.images.decoding import UnreadableImageError, decode_image


def chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def bomb(path: Path, side: int) -> Path:
    """A PNG of some kilobytes that decodes to side x side black pixels."""
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [22_000, 10_000])
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, side):
    path = bomb(tmp_path / "bomb.png", side)
    assert path.stat().st_size < 100_000
    with pytest.raises(UnreadableImageError, match=f"{side} x {side} pixels, more than the limit of 64000000"):
        decode_image(path)


def test_the_limit_is_given_in_pixels(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png", 1200).shape == (30, 40, 3)
    with pytest.raises(UnreadableImageError, match="40 x 30 pixels, more than the limit of 1199"):
        decode_image(tmp_path / "a.png", 1199)


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
@pytest.mark.parametrize("exif", [b"", b"Exif\x00\x00", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff", b"no exif at all"])
def test_whole_pixels_with_a_damaged_exif_block_are_read(tmp_path, ending, exif):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"plain.{ending}")
    Image.fromarray(pixels).save(tmp_path / f"odd.{ending}", exif=exif)
    np.testing.assert_array_equal(
        decode_image(tmp_path / f"odd.{ending}"), decode_image(tmp_path / f"plain.{ending}")
    )


def test_a_large_text_does_not_lose_the_pixels(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 5_000_000, zip=True)
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=info)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("largest", [1.0, 255.0])
def test_floats_become_the_bytes_that_a_person_sees(tmp_path, largest):
    values = np.linspace(0, largest, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif")[..., 1], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize("values", [(0.0, 70000.0), (-1.0, 1.0), (0.0, np.nan), (0.0, np.inf)])
def test_floats_of_another_range_are_refused(tmp_path, values):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="floats"):
        decode_image(tmp_path / "a.tif")


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_name_in_another_unicode_form_is_found(tmp_path, stored, asked):
    folder, name = "Été à Québec", "café crème.png"
    (tmp_path / unicodedata.normalize(stored, folder)).mkdir()
    Image.new("RGB", (4, 3), "red").save(
        tmp_path / unicodedata.normalize(stored, folder) / unicodedata.normalize(stored, name)
    )
    found = decode_image(tmp_path / unicodedata.normalize(asked, folder) / unicodedata.normalize(asked, name))
    assert found.shape == (3, 4, 3)
    with pytest.raises(UnreadableImageError, match="no such file"):
        decode_image(tmp_path / unicodedata.normalize(asked, folder) / "thé.png")


@pytest.mark.parametrize("name", ["pngtext.png", "bad.webp", "float01.tif"])
def test_the_odd_pictures_of_users_are_read(cases, name):
    pixels = decode_image(cases / "pictures" / name)
    assert pixels.std() > 5  # neither black nor empty
    assert os.path.getsize(cases / "pictures" / name) > 0
