"""Files as people have them: rare kinds of pixels agree with PIL, broken ones are named, nothing hangs."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ratfast.data import check_images, decode, find_bad_images, scan
from ratfast.data.files import read_image
from ratfast.errors import InputError


def png(pixels: np.ndarray, depth: int, colour: int, chunks: dict[bytes, bytes] | None = None) -> bytes:
    """A PNG of the depths and colour types that PIL does not write: `pixels` of shape (height, width, channels)."""
    rows = pixels.reshape(len(pixels), -1)
    if depth < 8:
        bits = np.unpackbits(rows.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :]
        lines = np.packbits(bits.reshape(len(rows), -1), axis=1)
    else:
        lines = rows.astype(">u2" if depth == 16 else np.uint8).view(np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0)
    more = b"".join(chunk(kind, data) for kind, data in (chunks or {}).items())
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def rare(photographs, formats, tmp_path_factory):
    """One file of each kind that the ordinary ones leave out, and some of these."""
    image, other = photographs
    noise = np.random.default_rng(0)
    colour = np.asarray(image).astype(np.uint16)
    deep = colour * 256 + noise.integers(0, 256, colour.shape, np.uint16)
    gray = np.asarray(image.convert("L")).astype(np.uint16)[:, :, None]
    alpha = np.full_like(gray, 30000)
    made = {
        "rgb-16.png": png(deep, 16, 2),
        "rgba-16.png": png(np.concatenate([deep, alpha], 2), 16, 6),
        "grey-alpha-16.png": png(np.concatenate([gray * 257, alpha], 2), 16, 4),
        "grey-16-dark.png": png(gray // 2, 16, 0),  # PIL clips what is above 255
        "grey-4.png": png(gray >> 4, 4, 0),
        "grey-2.png": png(gray >> 6, 2, 0),
        "gamma.png": png(colour, 8, 2, {b"gAMA": struct.pack(">I", 22727)}),
        "one-transparent-colour.png": png(colour, 8, 2, {b"tRNS": struct.pack(">HHH", 0, 0, 0)}),
        "several-pictures.jpg": saved(image, "MPO", save_all=True, append_images=[other]),
        "animated.webp": saved(image, "WEBP", save_all=True, append_images=[other]),
        "gif-named.png": saved(image, "GIF"),
        "jpeg-2000-named.jpg": saved(image, "JPEG2000"),
        "rgb-inside.jpg": saved(image, "JPEG", keep_rgb=True),
        "restarts.jpg": saved(image, "JPEG", subsampling="4:2:2", restart_marker_rows=1),
        "palette.bmp": saved(image.quantize(20), "BMP"),
        "cmyk.tif": saved(image.convert("CMYK"), "TIFF"),
        "floats.tif": saved(image.convert("F"), "TIFF"),
        "ünïcödé 图像 🐀.jpg": saved(image, "JPEG"),
        os.fsdecode(b"not-utf-8-\xff.jpg"): saved(image, "JPEG"),
    }
    folder = tmp_path_factory.mktemp("rare")
    files = {name: formats[name] for name in ("turned.jpg", "progressive.jpg", "cmyk.jpg", "sixteen.png")}
    for name, content in made.items():
        (folder / name).write_bytes(content)
        files[name] = str(folder / name)
    (folder / "link.png").symlink_to("gamma.png")
    return files | {"link.png": str(folder / "link.png")}


def test_rare_kinds_are_what_pil_makes_of_them(rare, backend_name):
    paths = list(rare.values())
    check_images(paths)
    assert find_bad_images(paths, decode=True) == []
    found = decode(paths, 48, backend=backend_name, threads=1)
    for (name, path), image in zip(rare.items(), found, strict=True):
        with Image.open(path) as opened:
            expected = np.asarray(transforms.Resize((48, 48))(opened.convert("RGB"))).astype(int)
        difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - expected).mean()
        assert difference < (0.5 if backend_name == "dali" else 1e-9), name


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


# Name of the file: what is wrong with it; None where only decoding tells. The files are made by `broken` below.
DEFECTS = {
    "empty.jpg": "is empty",
    "text.jpg": "is not an image",
    "page.png": "is not an image",
    "cut.jpg": "is cut off (a JPEG without its end)",
    "cut.png": "is cut off (a PNG without its end)",
    "cut.webp": "is cut off (a WebP of",
    "nowhere.jpg": "is a link to gone.jpg, which does not exist",
    "itself.jpg": "cannot be read (too many levels of symbolic links)",
    "pipe.jpg": "cannot be read (neither a file nor a link to one)",
    "endless.png": "cannot be read (neither a file nor a link to one)",
    "giant.bmp": "has 3000000000 bytes, more than the limit of 2147483647",
    "missing.jpg": "does not exist",
    "folder.jpg": "is a folder",
    "header.jpg": (None, "cannot be opened (damaged, or of an unknown format)"),
    "middle.png": (None, "cannot be decoded ("),
    "cut.bmp": (None, "cannot be decoded (image file is truncated"),
    "cut.tif": (None, "cannot be "),
    "bomb.png": (None, "has more pixels than the limit of 178956970"),
}


@pytest.fixture(scope="module")
def broken(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    image = photographs[0]
    whole = saved(image, "PNG")
    start = whole.index(b"IDAT") + 4
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"not an image at all",
        "page.png": b"<!DOCTYPE html><html><title>404</title></html>",
        "cut.jpg": cut(saved(image, "JPEG"), 0.7),
        "cut.png": cut(whole, 0.7),
        "cut.webp": cut(saved(image, "WEBP"), 0.7),
        "header.jpg": b"\xff\xd8\xff" + bytes(500) + b"\xff\xd9",
        "middle.png": whole[:start] + bytes(2000) + whole[start + 2000 :],
        "cut.bmp": cut(saved(image, "BMP"), 0.5),
        "cut.tif": cut(saved(image, "TIFF"), 0.5),
        "bomb.png": png(np.zeros((1, 1, 3)), 8, 2).replace(
            struct.pack(">II", 1, 1) + b"\x08\x02", struct.pack(">II", 100000, 100000) + b"\x08\x02"
        ),
    }
    header = contents["bomb.png"][12:29]
    contents["bomb.png"] = (
        contents["bomb.png"][:29] + struct.pack(">I", zlib.crc32(header)) + contents["bomb.png"][33:]
    )
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "endless.png").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    with (folder / "giant.bmp").open("wb") as file:
        file.write(b"BM")
        file.truncate(3_000_000_000)  # without a block on the disk
    return folder


# In a process of its own, which can be ended: a file that is waited for would hold up a thread for ever.
JUDGE = """
import json, sys
from ratfast.data import check_images, decode, find_bad_images
from ratfast.errors import InputError
def sentence(call):
    try:
        call()
    except InputError as error:
        return str(error)
backend, *paths = sys.argv[1:]
print(json.dumps([
    {
        "quick": sentence(lambda: check_images([path])),
        "whole": find_bad_images([path], decode=True),
        "used": sentence(lambda: decode([path], 16, backend=backend, threads=1)),
    }
    for path in paths
]))
"""


def test_each_broken_file_is_named_by_every_way_of_using_it(broken, backend_name):
    paths = [str(broken / name) for name in DEFECTS]
    done = subprocess.run(
        [sys.executable, "-c", JUDGE, backend_name, *paths], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for (name, expected), path, found in zip(DEFECTS.items(), paths, json.loads(done.stdout), strict=True):
        quick, whole = expected if isinstance(expected, tuple) else (expected, expected)
        beginning = f"image file {path} {whole}"
        assert found["used"].startswith(beginning), name
        assert found["used"].endswith("; expected a complete image") and "\n" not in found["used"]
        assert len(found["whole"]) == 1 and found["whole"][0][0] == path
        assert found["whole"][0][1].startswith(whole), name
        assert (found["quick"] is None) == (quick is None), name
        assert quick is None or found["quick"].startswith(f"image file {path} {quick}")


def test_bad_ones_are_found_among_good_ones_in_their_order(broken, rare):
    good = list(rare.values())
    paths = [
        good[0],
        str(broken / "cut.png"),
        *good[1:4],
        str(broken / "middle.png"),
        str(broken / "empty.jpg"),
    ]
    told = []
    found = find_bad_images(paths, decode=True, threads=3, progress=lambda *numbers: told.append(numbers))
    assert [Path(image.path).name for image in found] == ["cut.png", "middle.png", "empty.jpg"]
    assert told == [(7, 7)]
    assert [Path(image.path).name for image in find_bad_images(paths)] == ["cut.png", "empty.jpg"]
    assert find_bad_images([], decode=True) == []


def test_a_file_that_may_not_be_read(rare, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    path = rare["gamma.png"]
    with pytest.raises(InputError, match=r"gamma\.png cannot be read \(permission denied\)"):
        read_image(path)


def folder_of(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_links_that_lead_in_circles_are_refused(tmp_path):
    folder_of(tmp_path, "d/cat/1.jpg", "d/dog/1.jpg")
    link = tmp_path / "d" / "cat" / "again"
    for target in (".", "..", "../..", "/"):
        link.symlink_to(target)
        with pytest.raises(InputError, match="cat/again leads back to"):
            scan(tmp_path)
        link.unlink()
    (tmp_path / "d" / "cat" / "there").symlink_to("../dog")
    assert len(scan(tmp_path)) == 3  # an image that two classes have is no circle
    (tmp_path / "d" / "dog" / "back").symlink_to("../cat")
    with pytest.raises(InputError, match="leads back to"):
        scan(tmp_path)


def test_a_domain_or_class_that_is_a_dead_link_is_not_passed_over(tmp_path):
    folder_of(tmp_path, "d/cat/1.jpg", "e/cat/1.jpg")
    for place in (tmp_path / "f", tmp_path / "e" / "dog"):
        place.symlink_to("/nowhere/at/all")
        with pytest.raises(
            InputError, match=f"{place} is a link to /nowhere/at/all, which cannot be reached"
        ):
            scan(tmp_path)
        place.unlink()
    (tmp_path / ".#notes").symlink_to("someone@host")  # an editor's lock
    assert scan(tmp_path).domain_names == ("d", "e")


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    folder_of(tmp_path, "d/cat/1.jpg", "d/cat/more/2.jpg")
    original = os.scandir

    def refuse(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot list folder .*more: permission denied"):
        scan(tmp_path)


def test_images_left_out_keep_the_positions_of_the_others(root):
    dataset = scan(root)
    victims = [dataset.domains[1].paths[3], dataset.domains[1].paths[0], "elsewhere.jpg"]
    marked = dataset.leave_out(victims)
    assert [domain.paths for domain in marked.domains] == [domain.paths for domain in dataset.domains]
    assert [domain.left_out.tolist() for domain in marked.domains] == [[], [0, 3], []]
    assert marked.domains[1].usable().tolist() == [1, 2, *range(4, 10)]
    assert marked.domains[1].usable(np.array([9, 3, 2, 0])).tolist() == [9, 2]
    assert marked.domains[0].usable(np.array([], np.int64)).tolist() == []
    assert torch.equal(torch.from_numpy(dataset.domains[0].usable()), torch.arange(10))
