import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ratfast.data import check_images
from ratfast.data.files import decode_rgb, read_image
from ratfast.errors import InputError


def test_every_format_passes(formats):
    check_images(list(formats.values()))


def test_headers_are_pils(formats):
    for path in formats.values():
        found = read_image(path)
        with Image.open(path) as image:
            assert (found.width, found.height, found.format, found.mode) == (
                *image.size,
                image.format,
                image.mode,
            )
            expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(np.asarray(decode_rgb(found)), expected)


@pytest.mark.parametrize(
    ("name", "kept", "complaint"),
    [
        ("rgb.jpg", 0.5, "cut off"),
        ("rgb.jpg", 0.99, "cut off"),
        ("progressive.jpg", 0.6, "cut off"),
        ("rgb.png", 0.5, "cut off"),
        ("lossy.webp", 0.9, "cut off"),
        ("lossless.webp", 0.5, "cut off"),
    ],
)
def test_cut_off(formats, tmp_path, name, kept, complaint):
    data = Path(formats[name]).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * kept)])
    for check in (lambda: check_images([path]), lambda: read_image(path)):
        with pytest.raises(InputError, match=f"{name} is {complaint}"):
            check()


def test_cut_off_after_a_thumbnail(photographs, tmp_path):
    thumbnail = io.BytesIO()
    photographs[0].resize((32, 32)).save(thumbnail, "JPEG")
    path = tmp_path / "camera.jpg"
    # The thumbnail, an image of its own with its own end, lies in the header of the picture.
    photographs[0].save(path, comment=thumbnail.getvalue())
    check_images([path])
    data = path.read_bytes()
    end = data.index(b"\xff\xd9") + 2
    path.write_bytes(data[: end + 2000])
    with pytest.raises(InputError, match="cut off"):
        check_images([path])


def test_trailing_bytes_are_harmless(formats, tmp_path):
    for name in ("rgb.jpg", "rgb.png", "lossy.webp"):
        path = tmp_path / name
        path.write_bytes(Path(formats[name]).read_bytes() + b"\0" * 500)
        check_images([path])
        decode_rgb(read_image(path))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"not an image at all", "is not an image"),
        (b"\xff\xd8", "is not an image"),
        (None, "does not exist"),
    ],
)
def test_unusable(tmp_path, content, complaint):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    for check in (lambda: check_images([path]), lambda: read_image(path)):
        with pytest.raises(InputError, match=f"bad.jpg {complaint}"):
            check()


def test_a_damaged_header_is_named_without_internals(tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"\xff\xd8\xff" + bytes(500) + b"\xff\xd9")
    check_images([path])  # its ends are those of an image
    with pytest.raises(InputError, match=r"bad\.jpg cannot be opened \(damaged") as caught:
        read_image(path)
    assert "BytesIO" not in str(caught.value)


def test_a_folder_is_not_an_image(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        check_images([tmp_path])


def test_the_first_is_named_and_the_others_counted(formats, tmp_path):
    bad = [tmp_path / f"{i}.png" for i in range(3)]
    for path in bad:
        path.write_bytes(b"")
    paths = [formats["rgb.jpg"], bad[2], formats["rgb.png"], bad[0], bad[1]]
    with pytest.raises(InputError, match=r"2\.png is empty.*2 more of 5 files"):
        check_images(paths)


def test_nothing_to_check():
    check_images([])


def test_the_check_says_how_far_it_is(formats):
    told = []
    check_images([formats["rgb.jpg"]] * 300, progress=lambda done, total: told.append((done, total)))
    assert told == [(256, 300), (300, 300)]


def test_damaged_header_names_the_file(tmp_path, formats):
    path = tmp_path / "damaged.png"
    data = bytearray(Path(formats["rgb.png"]).read_bytes())
    data[12:16] = b"XXXX"  # the first chunk is no longer a header
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged\.png cannot be"):
        decode_rgb(read_image(path))
