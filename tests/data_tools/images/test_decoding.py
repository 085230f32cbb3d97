import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from data_tools.images.decoding import UnreadableImageError, decode_image

RED = (255, 0, 0)


def save(path, picture, **options):
    picture.save(path, **options)
    return path


def coloured(width=12, height=8):
    """An image in which each pixel's colour tells its position."""
    y, x = np.mgrid[:height, :width]
    return np.stack([20 * x, 20 * y, 0 * x + 77], axis=2).astype(np.uint8)


def test_colours_are_rgb_bytes(tmp_path):
    image = decode_image(save(tmp_path / "a.png", Image.fromarray(coloured())))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, coloured())


def test_jpeg_is_decoded_to_the_bytes_of_opencv(coco_samples):
    for path in sorted((coco_samples / "images").rglob("*.jpg")):
        np.testing.assert_array_equal(decode_image(path), cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1])


def test_grey_is_repeated_in_all_channels(tmp_path):
    grey = coloured()[:, :, 0]
    image = decode_image(save(tmp_path / "a.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(image, np.repeat(grey[:, :, None], 3, axis=2))


def test_cmyk_jpeg_becomes_colour(tmp_path):
    image = decode_image(save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95))
    assert np.abs(image.astype(int) - RED).max() <= 2


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_upper_byte(tmp_path, ending, channels):
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{ending}"), values)
    image = decode_image(tmp_path / f"a.{ending}").astype(int)
    assert np.abs(image - np.broadcast_to(values[:, :, ::-1] >> 8, image.shape)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(tmp_path, mode):
    alpha = np.array([[0, 128, 255]], np.uint8)
    value = np.full_like(alpha, 100)
    channels = [value] * (len(mode) - 1) + [alpha]
    image = decode_image(save(tmp_path / "a.png", Image.fromarray(np.stack(channels, axis=2), mode)))
    expected = 255 + (100 - 255) * (alpha[0] / 255.0)
    assert np.abs(image[0] - expected[:, None]).max() <= 1


def test_a_transparent_palette_colour_is_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    image = decode_image(save(tmp_path / "a.gif", picture, transparency=1))
    assert image.tolist() == [[[255, 0, 0], [255, 255, 255]]]


# EXIF orientation -> how the stored rows and columns must be turned to stand upright (TIFF 6.0, tag 274)
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    image = decode_image(save(tmp_path / "a.png", Image.fromarray(coloured()), exif=exif))
    np.testing.assert_array_equal(image, UPRIGHT[orientation](coloured()))


def test_one_pixel_is_an_image(tmp_path):
    image = decode_image(save(tmp_path / "a.png", Image.new("RGB", (1, 1), RED)))
    assert image.tolist() == [[[255, 0, 0]]]


def noise(path):
    return save(path, Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif", "webp", "tif"])
def test_a_truncated_file_is_unreadable(tmp_path, ending):
    path = noise(tmp_path / f"a.{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImageError):
        decode_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is text, whatever its name says", "not an image in a known format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), None),
        (b"\xff\xd8\xff\xe0" + bytes(40), None),
        (b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + b"\xff" * 17, None),
    ],
)
def test_what_is_not_an_image_is_unreadable(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason):
        decode_image(tmp_path / "a.jpg")


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path):
    with pytest.raises(UnreadableImageError, match="no such file"):
        decode_image(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImageError, match="directory"):
        decode_image(tmp_path)
