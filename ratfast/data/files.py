"""Image files: reading them, and finding the unusable ones before a decoder does.

A file is judged by its bytes, never by its name: it must begin like an image and end as its format says it
ends. That finds missing, empty, mislabelled and cut-off files at the cost of reading the head and tail of
each.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from ratfast.errors import InputError

_HEAD = 64
_TAIL = 64
_PROGRESS_EVERY = 256
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_OTHER = (
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"GIF87a",
    b"GIF89a",
    b"\0\0\0\x0cjP  ",
    *(b"P%d" % kind for kind in range(1, 8)),
)


Progress = Callable[[int, int], None]
"""Called with the number of images dealt with so far and their number in all."""


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """The bytes of an image file and what its header says.

    Attributes:
        path: the file.
        data: its bytes, 1-D uint8.
        width: width in pixels, before any EXIF rotation.
        height: height in pixels, before any EXIF rotation.
        format: PIL's name of the format, such as "JPEG".
        mode: PIL's name of the pixel layout, such as "RGB" or "CMYK".
        transparent: a PNG or GIF palette names a transparent colour.
    """

    path: str
    data: np.ndarray
    width: int
    height: int
    format: str
    mode: str
    transparent: bool = False


def check_images(
    paths: Sequence[str | os.PathLike[str]], threads: int = 16, progress: Progress | None = None
) -> None:
    """Check that files are whole images, quickly: by their first and last bytes.

    Finds files that are missing, unreadable, empty, not images (a text named `.jpg`) or cut off. A damaged
    middle is found only when the image is decoded.

    Args:
        paths: the files.
        threads: how many are read at a time.
        progress: told how far it is.

    Raises:
        InputError: names the first bad file and what is wrong with it, and counts the others.
    """
    if not paths:
        return
    with ThreadPoolExecutor(max(1, min(threads, len(paths)))) as pool:
        bad = []
        for number, (path, defect) in enumerate(zip(paths, pool.map(_file_defect, paths), strict=True), 1):
            if defect:
                bad.append((path, defect))
            if progress is not None and (number % _PROGRESS_EVERY == 0 or number == len(paths)):
                progress(number, len(paths))
    if bad:
        path, defect = bad[0]
        others = f"; {len(bad) - 1} more of {len(paths)} files are unusable too" if len(bad) > 1 else ""
        raise InputError(f"image file {os.fspath(path)} {defect}; expected a complete image{others}")


def read_image(path: str | os.PathLike[str]) -> EncodedImage:
    """Read an image file without decoding it.

    Args:
        path: the file.

    Returns:
        Its bytes and what its header says.

    Raises:
        InputError: the file is missing, unreadable, empty, not an image or cut off.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"image file {path} {_os_defect(error)}; expected a complete image") from error
    defect = _defect(data[:_HEAD], data[-_TAIL:], len(data), lambda: data)
    if defect:
        raise InputError(f"image file {path} {defect}; expected a complete image")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            return EncodedImage(
                path,
                np.frombuffer(data, np.uint8),
                width,
                height,
                image.format or "",
                image.mode,
                "transparency" in image.info,
            )
    except UnidentifiedImageError as error:  # its text names a buffer, not the file
        raise InputError(
            f"image file {path} cannot be opened (damaged, or of an unknown format); expected a complete image"
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"image file {path} cannot be opened ({error}); expected a complete image"
        ) from error


def decode_rgb(image: EncodedImage) -> Image.Image:
    """Decode an image on the host with PIL, as `convert("RGB")` makes it.

    Args:
        image: the encoded image.

    Returns:
        An RGB image, not rotated by EXIF.

    Raises:
        InputError: PIL cannot decode it.
    """
    try:
        with Image.open(io.BytesIO(image.data.tobytes())) as opened:
            return opened.convert("RGB")
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise InputError(
            f"image file {image.path} cannot be decoded ({error}); expected a complete image"
        ) from error


def _file_defect(path: str | os.PathLike[str]) -> str | None:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD)
            file.seek(max(0, size - _TAIL))
            tail = file.read(_TAIL)

            def whole() -> bytes:
                file.seek(0)
                return file.read()

            return _defect(head, tail, size, whole)
    except OSError as error:
        return _os_defect(error)


def _os_defect(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    return f"cannot be read ({error.strerror})"


def _defect(head: bytes, tail: bytes, size: int, whole: Callable[[], bytes]) -> str | None:
    """What is wrong with a file of `size` bytes, or None; `whole()` reads it where the ends do not tell."""
    if size == 0:
        return "is empty"
    if head.startswith(_JPEG):
        # Entropy-coded data never holds FF D9, so one at the very end closes the scan.
        return (
            None
            if tail.endswith(b"\xff\xd9") or _jpeg_ends(whole())
            else "is cut off (a JPEG without its end)"
        )
    if head.startswith(_PNG):
        return None if b"IEND" in tail or b"IEND" in whole() else "is cut off (a PNG without its end)"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        stated = int.from_bytes(head[4:8], "little") + 8
        return None if stated <= size else f"is cut off (a WebP of {stated} bytes of which {size} are there)"
    if head.startswith(_OTHER):
        return None
    return "is not an image"


def _jpeg_ends(data: bytes) -> bool:
    """Whether the end marker follows the first scan: a thumbnail's, inside the header, does not count."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            position += 2
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return data.find(b"\xff\xd9", position) >= 0
    return False
